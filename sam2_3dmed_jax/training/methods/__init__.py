"""What training asks of a kind of model. The loop, the step and the sharding know no other difference between kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.data.clips import Features
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.training.losses import Term
from sam2_3dmed_jax.training.methods.clips import ClipMethod
from sam2_3dmed_jax.training.methods.patches import PatchMethod
from sam2_3dmed_jax.training.objective import Batch
from sam2_3dmed_jax.volume.resample import Spacing


class Method(Protocol):
    """From cases to batches, from a batch to terms of the loss, and to pictures."""

    @property
    def image_size(self) -> int:
        """S of the slices that it sees; 0: voxels as they are stored."""

    @property
    def spacing(self) -> Spacing:
        """(dz, dy, dx) that cases are prepared at, mm; None: the case's own."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Columns of the log beside `loss`."""

    @property
    def frozen(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Patterns of parameters that never train, and of those that by default do not with loaded weights."""

    @property
    def shown_specs(self) -> Any:
        """How `shown` is split over devices, in its shape."""

    def complete(self, config: ExperimentConfig) -> ExperimentConfig:
        """The experiment with the fields set that follow from others. UserError: fields that do not fit the kind."""

    def item_shapes(self, config: ExperimentConfig) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each field of a batch, without its leading axis."""

    def batches(
        self,
        view: ModelView,
        cases: Sequence[CaseEntry],
        data: DataConfig,
        batch_size: int,
        seed: int,
        host: int,
        hosts: int,
        features: Features | None,
    ) -> grain.MapDataset:
        """Endless random-access batches; arguments as of `pipeline.clip_batches`."""

    def forward(self, model: Any, batch: Batch, training: TrainingConfig | None = None) -> Any:
        """What `terms` and `shown` look at; `training` says what the backward pass computes again."""

    def terms(self, out: Any, batch: Batch) -> dict[str, Term]:
        """Each term of the loss by its name in the log, and `dice`, of the masks."""

    def shown(self, out: Any) -> Any:
        """What is drawn."""

    def pictures(self, batch: Mapping[str, np.ndarray], shown: Any) -> dict[str, np.ndarray]:
        """Pictures by name, uint8 `[H, W, 3]`."""


def method_of(model: ModelConfig) -> Method:
    """The method of a model's kind."""
    return PatchMethod(model) if model.kind == "unet" else ClipMethod(model)
