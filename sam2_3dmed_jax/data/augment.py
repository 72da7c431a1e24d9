"""Draws of the augmentation of clips and patches: one in-plane map for all slices, contrast, brightness, gamma, noise.

The host draws the parameters; the compiled step applies them (`render`). Slices keep their order and positions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypedDict

import numpy as np

from sam2_3dmed_jax.config import AugmentationConfig
from sam2_3dmed_jax.data.warp import IDENTITY, fixed_point_map

NO_AUGMENTATION = AugmentationConfig(**{each.name: 0.0 for each in dataclasses.fields(AugmentationConfig)})


class IntensityChange(TypedDict):
    """The parameters of `render.change_intensity`."""

    intensity: np.ndarray  # float32 [4]: contrast, brightness, gamma, and the SD of the noise
    noise_key: np.ndarray  # uint32 [2]


INTENSITY_SHAPES: dict[str, tuple[tuple[int, ...], type]] = {
    "intensity": ((4,), np.float32),
    "noise_key": ((2,), np.uint32),
}


def active_augmentations(config: AugmentationConfig) -> dict[str, float]:
    """Return the settings that are on; every one of them changes pixels."""
    return {name: value for name, value in dataclasses.asdict(config).items() if value}


def moves_pixels(config: AugmentationConfig) -> bool:
    """Return whether a spatial setting is on."""
    return bool(config.flip_probability or config.rotation or config.scaling or config.shift)


def draw_spatial_map(
    size: int, pixel_mm: tuple[float, float], config: AugmentationConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw flips, rotation, scaling and shift about the slice's centre.

    Args:
        size: S, pixels.
        pixel_mm: (dy, dx); the rotation preserves distances in mm.
        config: maximum rotation, scaling and shift, and the probability of flips.
        rng: random generator; the number of draws does not depend on the values drawn.

    Returns:
        The map of `warp`, int32 `[2, 3]`: flips of the axes, then an affine map.

    Raises:
        UserError: the settings move pixels too far.
    """
    flips = rng.random(2) < config.flip_probability
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    scale = 1 / (1 + rng.uniform(-config.scaling, config.scaling))
    shift = rng.uniform(-config.shift, config.shift, 2) * size
    if not moves_pixels(config):
        return IDENTITY
    cos, sin, aspect = scale * math.cos(angle), scale * math.sin(angle), pixel_mm[1] / pixel_mm[0]
    matrix = np.array([[cos, -sin * aspect], [sin / aspect, cos]])  # output pixels to input pixels
    centre = np.full(2, (size - 1) / 2)
    offset = centre - matrix @ (centre + shift)
    signs = np.where(flips, -1.0, 1.0)  # pixel p of a flipped axis is pixel S - 1 - p
    return fixed_point_map(signs[:, None] * matrix, np.where(flips, size - 1 - offset, offset), (size, size))


def draw_intensity_change(config: AugmentationConfig, rng: np.random.Generator) -> IntensityChange:
    """Draw contrast, brightness, gamma, the SD of the noise, and the key of its generator."""
    contrast = 1 + rng.uniform(-config.intensity, config.intensity)
    brightness = rng.uniform(-config.intensity, config.intensity)
    gamma = (1 + config.gamma) ** rng.uniform(-1, 1)
    noise = rng.uniform(0, config.noise)
    key = int(rng.integers(1 << 63))
    return IntensityChange(
        intensity=np.array([contrast, brightness, gamma, noise], np.float32),
        noise_key=np.array([key >> 32, key & 0xFFFFFFFF], np.uint32),
    )
