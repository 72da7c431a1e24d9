"""Training methods: the differences between kinds of models, from cases to batches, losses and images.

The loop, the train step and the sharding are the same for every kind of model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from sam2_3dmed_jax.config import AnyModelConfig, DataConfig, ExperimentConfig, LossConfig, TrainingConfig, UNetConfig
from sam2_3dmed_jax.data.case_reader import CaseReader, StoredSlices
from sam2_3dmed_jax.data.clips import CachedFeatures
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.training.losses import Loss, Term
from sam2_3dmed_jax.training.methods.clips import ClipMethod
from sam2_3dmed_jax.training.methods.patches import PatchMethod
from sam2_3dmed_jax.training.parameter_groups import FrozenPatterns
from sam2_3dmed_jax.training.unroll import Batch
from sam2_3dmed_jax.volume.resample import Spacing


class Method(Protocol):
    """How a kind of model is trained."""

    @property
    def image_size(self) -> int:
        """S of the slices in a batch, or 0 for the voxels of the prepared case."""

    @property
    def spacing(self) -> Spacing:
        """(dz, dy, dx) of prepared cases, in mm; None keeps the spacing of the case."""

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses of the kind of model (`losses.LOSSES`)."""

    @property
    def frozen(self) -> FrozenPatterns:
        """Patterns of parameters that do not train."""

    @property
    def image_specs(self) -> Any:
        """Partition specs of `image_data`."""

    def complete(self, config: ExperimentConfig) -> ExperimentConfig:
        """Return the experiment with the fields set that follow from others.

        Raises:
            UserError: fields that do not fit the kind of model.
        """

    def item_shapes(self, config: ExperimentConfig, stored: StoredSlices) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Return the shape and dtype of each field of a batch, without the leading axis."""

    def batches(
        self,
        reader: CaseReader,
        cases: Sequence[PreparedCase],
        data: DataConfig,
        batch_size: int,
        seed: int,
        host: int,
        hosts: int,
        features: CachedFeatures | None,
    ) -> grain.MapDataset:
        """Return endless random-access batches; the arguments are those of `data.pipeline.clip_batches`."""

    def render(self, batch: Batch, data: DataConfig) -> Batch:
        """Return what the other functions take as a batch, from the stored voxels of a batch (`data.render`)."""

    def forward(self, model: Any, batch: Batch, training: TrainingConfig | None = None) -> Any:
        """Return the outputs of a model for a batch; `training` sets the rematerialisation."""

    def terms(self, out: Any, batch: Batch, weights: LossConfig | None = None) -> dict[str, Term]:
        """Return the terms of the loss and `dice`, by column of the log; `weights` decides on optional ones."""

    def logit_counts(self, out: Any, batch: Batch) -> jax.Array:
        """Return the histogram that a temperature is fitted to (`calibration.logit_counts`)."""

    def image_data(self, out: Any) -> Any:
        """Return the outputs that `images` draws."""

    def images(self, batch: Mapping[str, np.ndarray], data: Any) -> dict[str, np.ndarray]:
        """Return images of a batch and its `image_data` by name, uint8 `[H, W, 3]`."""


def method_of(model: AnyModelConfig) -> Method:
    """Return the training method of a model's kind."""
    return PatchMethod(model) if isinstance(model, UNetConfig) else ClipMethod(model)
