"""A U-Net is trained on patches: Dice and cross-entropy over classes at each resolution of its decoder.

As nnU-Net: a resolution counts half of the finer one and the coarsest not at all; the Dice loss leaves the background
out; a third of the patches lies about a voxel of a class. Ours: the optimizer is that of all runs here (AdamW), and
there is none of nnU-Net's mirroring, blur and low-resolution augmentation.
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

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.data.clips import Features
from sam2_3dmed_jax.data.patches import patch_shapes
from sam2_3dmed_jax.data.pipeline import patch_batches
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.pictures import training
from sam2_3dmed_jax.training.losses import Term
from sam2_3dmed_jax.training.objective import Batch
from sam2_3dmed_jax.training.sharding import BATCH_AXES
from sam2_3dmed_jax.volume.resample import Spacing

SMOOTH = 1e-5  # nnU-Net's
Logits = list[jax.Array]  # [B, d, h, w, 1 + classes], the finest first


@dataclass(frozen=True)
class PatchMethod:
    """See `methods.Method`."""

    model: ModelConfig

    losses = ("loss_seg", "loss_ce", "loss_dice")
    frozen: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    image_size: int = 0

    @property
    def spacing(self) -> Spacing:
        """`model.unet.spacing`."""
        return self.model.unet.spacing

    def complete(self, config: ExperimentConfig) -> ExperimentConfig:
        """The network has an output for each of `data.classes`.

        Raises:
            UserError: no classes, or features of an encoder.
        """
        classes = config.data.classes
        if not classes or len({0, *classes}) <= len(classes):
            raise UserError("data.classes: a U-Net has an output a class, so name each once; give 1, or 1 2")
        if config.data.features:
            raise UserError("data.features: a U-Net has no frozen encoder; leave it out")
        return config.replace(model=replace(config.model, unet=replace(config.model.unet, classes=classes)))

    def item_shapes(self, config: ExperimentConfig) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Those of a patch."""
        return patch_shapes(self.model.unet.patch)

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
        """Batches of patches."""
        return patch_batches(view, cases, data, self.model.unet.patch, batch_size, seed, host, hosts)

    def forward(self, model: Any, batch: Batch, training: TrainingConfig | None = None) -> Logits:
        """Logits at each resolution; what `training.remat_trunk` names is computed again in the backward pass."""
        return model.every_scale(batch["image"], training.remat_trunk if training else "none")

    def terms(self, out: Logits, batch: Batch) -> dict[str, Term]:
        """`loss_ce`, `loss_dice` and `dice`; a patch is a term."""
        labels = batch["labels"]
        used = out[:-1] or out
        shares = np.array([0.5**scale for scale in range(len(used))])
        shares /= shares.sum()
        ce = dice = jnp.zeros(len(labels))
        for logits, share in zip(used, shares.tolist(), strict=True):
            onehot = jax.nn.one_hot(_nearest(labels, logits.shape[1:4]), logits.shape[-1])
            ce = ce - share * (jax.nn.log_softmax(logits) * onehot).sum(-1).mean((1, 2, 3))
            dice = dice + share * (1 - _soft_dice(jax.nn.softmax(logits)[..., 1:], onehot[..., 1:]))
        number = jnp.asarray(len(labels), jnp.float32)
        return {
            "loss_ce": Term(ce.sum(), number),
            "loss_dice": Term(dice.sum(), number),
            "dice": _hard_dice(out[0], labels),
        }

    def shown(self, out: Logits) -> jax.Array:
        """The class of each voxel of a patch's middle slice, uint8 `[B, H, W]`."""
        finest = out[0]
        return finest[:, finest.shape[1] // 2].argmax(-1).astype(jnp.uint8)

    @property
    def shown_specs(self) -> Any:
        """Patches are the first axis."""
        return P(BATCH_AXES)

    def pictures(self, batch: Mapping[str, np.ndarray], shown: np.ndarray) -> dict[str, np.ndarray]:
        """`masks`: the middle slice of each patch, side by side; all classes outlined, the reference's in green."""
        middle = batch["image"].shape[1] // 2
        chosen = slice(training.CLIPS)
        image, labels = batch["image"][chosen, middle], batch["labels"][chosen, middle]
        return {"masks": training.outlined(image, labels > 0, np.asarray(shown)[chosen] > 0)}


def _nearest(labels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Labels `[B, D, H, W]` at a coarser resolution: of each block of voxels that in its middle."""
    for axis, size in enumerate(shape, 1):
        step = labels.shape[axis] // size
        labels = jax.lax.slice_in_dim(labels, step // 2, None, step, axis)
    return labels


def _soft_dice(probability: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over classes of each patch's soft Dice, `[B]`, from `[B, d, h, w, classes]`."""
    overlap = (probability * target).sum((1, 2, 3))
    sizes = probability.sum((1, 2, 3)) + target.sum((1, 2, 3))
    return ((2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean(-1)


def _hard_dice(logits: jax.Array, labels: jax.Array) -> Term:
    """Dice of each class in each patch that holds it."""
    classes = jnp.arange(1, logits.shape[-1])
    predicted = logits.argmax(-1)[..., None] == classes
    reference = labels[..., None] == classes
    sizes = reference.sum((1, 2, 3))
    overlap = (predicted & reference).sum((1, 2, 3))
    dice = 2 * overlap / jnp.maximum(predicted.sum((1, 2, 3)) + sizes, 1)
    return Term((dice * (sizes > 0)).sum(), (sizes > 0).sum(dtype=jnp.float32))
