"""Automatic segmentation of volumes with a U-Net, by sliding windows at the spacing of the U-Net.

As in nnU-Net, logits are interpolated to the grid of the volume, and the class with the largest logit is chosen there.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from sam2_3dmed_jax.inference.sliding_window import slide
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.unet.network import UNet
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import apply_window, window_of_model
from sam2_3dmed_jax.volume.resample import regrid, resample_values


@functools.partial(jax.jit, static_argnums=0)
def patch_logits(graphdef: nnx.GraphDef[Any], weights: Weights, patches: jax.Array) -> jax.Array:
    """Return logits float32 `[B, D, H, W, 1 + classes]` of patches `[B, D, H, W]`."""
    logits: jax.Array = merge(graphdef, weights)(patches)
    return logits


class AutomaticPredictor:
    """Segments volumes with one U-Net, without prompts."""

    def __init__(self, model: UNet):
        self.model = model
        self.graphdef, self.weights = split(model)

    def segment(self, volume: Volume, progress: Progress | None = None) -> np.ndarray:
        """Return the label map of a volume, uint16 `[D, H, W]`, with the label values of the training data.

        Args:
            volume: at any spacing.
            progress: called after each window.

        Raises:
            UserError: the volume is too large at the spacing of the model, or of another modality.
        """
        config, info = self.model.config, self.model.info
        plan = regrid(volume.array.shape, volume.canonical_affine, config.spacing, volume.grid.source or "the volume")
        values = resample_values(volume.array, plan)
        # As in training, the intensity window is computed from the resampled values.
        resampled = Volume(
            values, Grid(plan.shape, plan.affine, volume.grid.source, is_canonical=True), volume.modality
        )
        unit = apply_window(values, *window_of_model(resampled, info.preprocessing))
        logits = slide(
            lambda patch: np.asarray(patch_logits(self.graphdef, self.weights, patch)),
            unit,
            config.patch,
            progress,
        )
        back = plan.back(volume.array.shape, volume.canonical_affine)
        labels = np.zeros(volume.array.shape, np.uint16)
        largest = resample_values(logits[0], back)
        for value, class_logits in zip(config.classes, logits[1:], strict=True):  # one class at a time, to save memory
            candidate = resample_values(class_logits, back)
            larger = candidate > largest
            labels[larger] = value
            largest = np.where(larger, candidate, largest)
        return labels
