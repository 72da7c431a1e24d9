"""Training method of SAM 2 and SAM2-3dMed: clips, unrolled from their prompts (`unroll.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, LossConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.data.case_reader import CaseReader, StoredSlices
from sam2_3dmed_jax.data.clip_lengths import check_clip_lengths, clip_lengths
from sam2_3dmed_jax.data.clip_prompts import check_prompts
from sam2_3dmed_jax.data.clips import MAX_OBJECTS, CachedFeatures, clip_shapes
from sam2_3dmed_jax.data.pipeline import clip_batches
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.data.render import render_clips
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.pictures.training_images import ClipPredictions, clip_images
from sam2_3dmed_jax.sam2.layers import resize_masks
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.training.calibration import logit_counts
from sam2_3dmed_jax.training.features.choice import trains_from_features
from sam2_3dmed_jax.training.features.encoder import feature_shapes
from sam2_3dmed_jax.training.losses import LOSSES, Loss, Term, clip_inputs, compute_terms, used_losses
from sam2_3dmed_jax.training.parameter_groups import SAM2_FROZEN
from sam2_3dmed_jax.training.sharding import BATCH_AXES
from sam2_3dmed_jax.training.unroll import Batch, UnrolledClips, unroll_clips
from sam2_3dmed_jax.volume.resample import Spacing


@dataclass(frozen=True)
class ClipMethod:
    """See `methods.Method`."""

    model: ModelConfig

    frozen = SAM2_FROZEN
    spacing: Spacing = (None, None, None)

    @property
    def image_size(self) -> int:
        """S of the model."""
        return preset_config(self.model.preset, self.model.image_size).image_size

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses of clips."""
        return LOSSES["sam2"]

    def complete(self, config: ExperimentConfig) -> ExperimentConfig:
        """Let the slice context attend over as many slices at inference as in training.

        Raises:
            UserError: the experiment sets another number, too many objects per clip, lengths or prompts of clips that
                do not fit, or cached features with zoom.
        """
        if not 1 <= (objects := config.data.clips.objects) <= MAX_OBJECTS:
            raise UserError(f"data.clips.objects: {objects} objects in a clip; use 1 to {MAX_OBJECTS}")
        check_clip_lengths(config.data)
        check_prompts(replace(config.data, slices=min(clip_lengths(config.data))))
        if config.data.features and config.data.clips.zoom_probability:
            raise UserError(
                "data.clips.zoom_probability: zoomed clips need the slices, and data.features has features of whole "
                "ones; leave out one of them"
            )
        srpp, slices = self.model.slice_position, config.data.slices
        if srpp.window not in (None, slices):
            raise UserError(
                f"model.slice_position.window: it is {srpp.window} and data.slices is {slices}, but the slice context "
                "attends over as many slices at inference as in training; leave it out"
            )
        return config.replace(model=replace(self.model, slice_position=replace(srpp, window=slices)))

    def item_shapes(self, config: ExperimentConfig, stored: StoredSlices) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Return the shapes and dtypes of a clip."""
        features = feature_shapes(self.model) if trains_from_features(config) else None
        return clip_shapes(config.data, self.image_size, stored, features)

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
        """Return batches of clips."""
        return clip_batches(reader, cases, data, batch_size, seed, host, hosts, features)

    def render(self, batch: Batch, data: DataConfig) -> Batch:
        """Compute the slices and masks of the clips."""
        return render_clips(batch, data.augmentation)

    def forward(self, model: Any, batch: Batch, training: TrainingConfig | None = None) -> UnrolledClips:
        """Propagate the prompts of the clips."""
        remat = (training.remat_trunk, training.remat_slices) if training else ()
        return unroll_clips(model, batch, *remat)

    def terms(self, out: UnrolledClips, batch: Batch, weights: LossConfig | None = None) -> dict[str, Term]:
        """Return the terms of the losses of clips."""
        return compute_terms(used_losses(self.losses, weights), clip_inputs(out, batch), self.model)

    def logit_counts(self, out: UnrolledClips, batch: Batch) -> jax.Array:
        """Count the pixels of propagated slices on which the model finds the object, at the decoder's resolution."""
        inputs = clip_inputs(out, batch)
        inside = resize_masks(inputs.slices.target, out.mask_logits.shape[-1]) > 0.5
        found = inputs.propagated & (out.candidates.object_score_logits > 0)
        return logit_counts(out.mask_logits, inside, jnp.broadcast_to(found[..., None, None], inside.shape))

    def image_data(self, out: UnrolledClips) -> ClipPredictions:
        """Return masks, boundaries and positions."""
        return ClipPredictions(out.mask_logits, out.candidates.boundary_logits, out.positions)

    @property
    def image_specs(self) -> Any:
        """Rows are the second axis of masks and boundaries; clips are the first axis of positions."""
        rows: Any = P(None, BATCH_AXES)
        clips: Any = P(BATCH_AXES)
        return ClipPredictions(rows, rows, clips)

    def images(self, batch: Mapping[str, np.ndarray], data: ClipPredictions) -> dict[str, np.ndarray]:
        """Return images of the clips with the predictions."""
        return clip_images(batch, data, self.model)
