"""Augmentation of a clip on the host: one in-plane affine for all its slices, brightness and contrast, noise."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.config import DataConfig


def augment(
    slices: np.ndarray, labels: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Augment `slices` (float32 `[D, S, S]` in [0, 1]) and `labels` (uint8 `[D, S, S]`); the inputs are kept."""
    if config.rotation or config.scaling or config.shift:
        matrix, offset = _affine(slices.shape[1], config, rng)
        slices = np.stack([ndimage.affine_transform(s, matrix, offset, order=1) for s in slices])
        labels = np.stack([ndimage.affine_transform(s, matrix, offset, order=0) for s in labels])
    contrast = 1 + rng.uniform(-config.intensity, config.intensity)
    brightness = rng.uniform(-config.intensity, config.intensity)
    noise = rng.uniform(0, config.noise)
    slices = slices * contrast + brightness
    if noise:
        slices = slices + noise * rng.standard_normal(slices.shape, dtype=np.float32)
    return np.clip(slices, 0, 1).astype(np.float32), labels


def _affine(size: int, config: DataConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset that take output pixels to input pixels, about the slice's centre."""
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    scale = 1 / (1 + rng.uniform(-config.scaling, config.scaling))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]])
    centre = np.full(2, (size - 1) / 2)
    shift = rng.uniform(-config.shift, config.shift, 2) * size
    return matrix, centre - matrix @ (centre + shift)
