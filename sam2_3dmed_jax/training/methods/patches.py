"""Training method of the U-Net: patches, with deep supervision of the decoder's resolutions.

As in nnU-Net, a third of the patches is centred on a voxel of a class. Unlike nnU-Net, the optimizer is AdamW as in all
runs here, and there is neither mirroring nor blur nor low-resolution augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, LossConfig, TrainingConfig, UNetConfig
from sam2_3dmed_jax.data.case_reader import CaseReader, StoredSlices
from sam2_3dmed_jax.data.clips import CachedFeatures
from sam2_3dmed_jax.data.patches import patch_augmentation, patch_shapes
from sam2_3dmed_jax.data.pipeline import patch_batches
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.data.render import render_patches
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.pictures.training_images import CLIPS, outline_image
from sam2_3dmed_jax.training.calibration import BINS
from sam2_3dmed_jax.training.losses import LOSSES, Loss, PatchLogits, Term, compute_terms, patch_inputs, used_losses
from sam2_3dmed_jax.training.parameter_groups import FrozenPatterns
from sam2_3dmed_jax.training.sharding import BATCH_AXES
from sam2_3dmed_jax.training.unroll import Batch
from sam2_3dmed_jax.volume.label_classes import class_sets
from sam2_3dmed_jax.volume.resample import Spacing


@dataclass(frozen=True)
class PatchMethod:
    """See `methods.Method`."""

    model: UNetConfig

    frozen = FrozenPatterns((), ())
    image_size: int = 0

    @property
    def spacing(self) -> Spacing:
        """The spacing of the model."""
        return self.model.spacing

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses of patches."""
        return LOSSES["unet"]

    def complete(self, config: ExperimentConfig) -> ExperimentConfig:
        """Give the network one output for each of `data.classes`.

        Raises:
            UserError: no classes, a union of classes, or settings or features of an encoder.
        """
        sets = class_sets(config.data.classes, {})
        classes = tuple(entry.values[0] for entry in sets)
        if any(len(entry.values) > 1 for entry in sets):
            raise UserError("data.classes: a U-Net has no unions; name label values, such as --data.classes 1 2")
        if not classes or len({0, *classes}) <= len(classes):
            raise UserError(
                "data.classes: a U-Net has one output per class, so name each class once, such as --data.classes 1 2"
            )
        training = config.training
        if training.lora.rank or training.unfreeze_stages or training.layer_decay != 1:
            raise UserError(
                "training.lora, training.unfreeze_stages, training.layer_decay: they are for the trunk of SAM 2, and a "
                "U-Net has none; leave them out"
            )
        if config.data.features:
            raise UserError("data.features: a U-Net has no frozen encoder; leave it out")
        return config.replace(model=replace(self.model, classes=classes))

    def item_shapes(self, config: ExperimentConfig, stored: StoredSlices) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Return the shapes and dtypes of a patch, which do not depend on the stored slices."""
        return patch_shapes(self.model.patch, config.data)

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
        """Return batches of patches."""
        return patch_batches(reader, cases, data, self.model.patch, batch_size, seed, host, hosts)

    def render(self, batch: Batch, data: DataConfig) -> Batch:
        """Compute the images and labels of the patches."""
        return render_patches(batch, patch_augmentation(data), self.model.patch[1:])

    def forward(self, model: Any, batch: Batch, training: TrainingConfig | None = None) -> PatchLogits:
        """Return the logits at each resolution, the finest first."""
        return model.deep_supervision_logits(batch["image"], training.remat_trunk if training else "none")

    def terms(self, out: PatchLogits, batch: Batch, weights: LossConfig | None = None) -> dict[str, Term]:
        """Return the terms of the losses of patches."""
        return compute_terms(used_losses(self.losses, weights), patch_inputs(out, batch), self.model)

    def logit_counts(self, out: PatchLogits, batch: Batch) -> jax.Array:
        """Return an empty histogram: the classes of a U-Net exclude each other, so they have no logits of their own."""
        return jnp.zeros((BINS, 2), jnp.int32)

    def image_data(self, out: PatchLogits) -> jax.Array:
        """Return the class of each voxel of the middle slice of each patch, uint8 `[B, H, W]`."""
        finest = out[0]
        return finest[:, finest.shape[1] // 2].argmax(-1).astype(jnp.uint8)

    @property
    def image_specs(self) -> Any:
        """Patches are the first axis."""
        return P(BATCH_AXES)

    def images(self, batch: Mapping[str, np.ndarray], data: np.ndarray) -> dict[str, np.ndarray]:
        """Return `masks`: the middle slices of patches side by side, with the outlines of all classes together."""
        middle = batch["image"].shape[1] // 2
        chosen = slice(CLIPS)
        image, labels = batch["image"][chosen, middle], batch["labels"][chosen, middle]
        return {"masks": outline_image(image, labels > 0, np.asarray(data)[chosen] > 0)}
