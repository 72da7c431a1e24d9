"""SAM 2 and SAM2-3dMed are trained on clips, each walked from its prompt (`walk`, `objective`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grain
import numpy as np
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.data.clips import Features, clip_shapes
from sam2_3dmed_jax.data.pipeline import clip_batches
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.pictures import training
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.training.features.choice import trains_from_features
from sam2_3dmed_jax.training.features.encoder import feature_shapes
from sam2_3dmed_jax.training.losses import Term
from sam2_3dmed_jax.training.objective import Batch, terms
from sam2_3dmed_jax.training.parameter_groups import FROZEN_ALWAYS, FROZEN_PRETRAINED
from sam2_3dmed_jax.training.sharding import BATCH_AXES
from sam2_3dmed_jax.training.unroll import WalkOutput, walk_clips
from sam2_3dmed_jax.volume.resample import Spacing


@dataclass(frozen=True)
class ClipMethod:
    """See `methods.Method`."""

    model: ModelConfig

    losses = ("loss_seg", "loss_srpp", "loss_bd", "loss_bce", "loss_dice", "loss_iou", "loss_object_score")
    frozen = (FROZEN_ALWAYS, FROZEN_PRETRAINED)
    spacing: Spacing = (None, None, None)

    @property
    def image_size(self) -> int:
        """S."""
        return preset_config(self.model.preset, self.model.image_size).image_size

    def complete(self, config: ExperimentConfig) -> ExperimentConfig:
        """The slice context sees at prediction as many slices at once as it was trained on."""
        srpp = replace(config.model.slice_position, window=config.data.slices)
        return config.replace(model=replace(config.model, slice_position=srpp))

    def item_shapes(self, config: ExperimentConfig) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Those of a clip."""
        features = feature_shapes(self.model) if trains_from_features(config) else None
        return clip_shapes(config.data, self.image_size, features)

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
        """Batches of clips."""
        return clip_batches(view, cases, data, batch_size, seed, host, hosts, features)

    def forward(self, model: Any, batch: Batch, training: TrainingConfig | None = None) -> WalkOutput:
        """Walk the clips."""
        remat = (training.remat_trunk, training.remat_slices) if training else ()
        return walk_clips(model, batch, *remat)

    def terms(self, out: WalkOutput, batch: Batch) -> dict[str, Term]:
        """Those of `objective`."""
        return terms(out, batch, self.model)

    def shown(self, out: WalkOutput) -> training.Shown:
        """Masks, boundaries and positions."""
        return training.Shown(out.mask_logits, out.candidates.boundary_logits, out.positions)

    @property
    def shown_specs(self) -> Any:
        """Rows are the second axis."""
        rows: Any = P(None, BATCH_AXES)
        clips: Any = P(BATCH_AXES)
        return training.Shown(rows, rows, clips)

    def pictures(self, batch: Mapping[str, np.ndarray], shown: training.Shown) -> dict[str, np.ndarray]:
        """Clips side by side with what is shown of them."""
        return training.pictures(batch, shown, self.model)
