"""A volume through a U-Net: resampled to its spacing, windowed, slid over, and back onto the volume's own grid.

As in nnU-Net, logits are interpolated, then the strongest one counts. Nothing is told to it but the volume.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax import nnx

from sam2_3dmed_jax.inference.feature_store import Progress
from sam2_3dmed_jax.inference.sliding_window import slide
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.unet.network import UNet
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import apply_window, window_of
from sam2_3dmed_jax.volume.resample import regrid, resample_values


@functools.partial(jax.jit, static_argnums=0)
def patch_logits(graphdef: nnx.GraphDef, weights: Weights, patches: jax.Array) -> jax.Array:
    """Logits float32 `[B, D, H, W, 1 + classes]` of patches `[B, D, H, W]`."""
    return merge(graphdef, weights)(patches)


class AutomaticPredictor:
    """Segments volumes with one U-Net, which takes no prompts."""

    def __init__(self, model: UNet):
        self.model = model
        self.graphdef, self.weights = split(model)

    def segment(self, volume: Volume, progress: Progress | None = None) -> np.ndarray:
        """The label map of a volume, uint16 `[D, H, W]` with the label values that it was trained on.

        Args:
            volume: at any spacing.
            progress: called with (what, done, total).

        Raises:
            UserError: at the model's spacing the volume would be larger than one may be.
        """
        config, info = self.model.config, self.model.info
        plan = regrid(volume.array.shape, volume.canonical_affine, config.spacing, volume.grid.source or "the volume")
        values = resample_values(volume.array, plan)
        # The window is that of the resampled values, as in training.
        seen = Volume(values, Grid(plan.shape, plan.affine), volume.modality)
        unit = apply_window(values, *window_of(seen, info.preprocessing.window))
        logits = slide(
            lambda patch: np.asarray(patch_logits(self.graphdef, self.weights, patch)),
            unit,
            config.patch,
            (lambda done, total: progress("sliding windows", done, total)) if progress else None,
        )
        back = plan.back(volume.array.shape, volume.canonical_affine)
        labels = np.zeros(volume.array.shape, np.uint16)
        best = resample_values(logits[0], back)
        for value, each in zip(config.classes, logits[1:], strict=True):  # one class at a time, to save memory
            strength = resample_values(each, back)
            stronger = strength > best
            labels[stronger] = value
            best = np.where(stronger, strength, best)
        return labels
