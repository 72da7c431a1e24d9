"""Augmentation of clips and patches: one in-plane transform for all slices, then contrast, brightness, gamma and noise.

Slices keep their order and positions. A setting of zero leaves the values bit for bit unchanged.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.config import AugmentationConfig
from sam2_3dmed_jax.data.warp import Warp

_BYTES_SD = math.sqrt(4 * (256**2 - 1) / 12)  # SD of the sum of four uniform bytes
_BYTES_MEAN = 4 * 255 / 2


NO_AUGMENTATION = AugmentationConfig(**{each.name: 0.0 for each in dataclasses.fields(AugmentationConfig)})


def active_augmentations(config: AugmentationConfig) -> dict[str, float]:
    """Return the settings that are on; every one of them changes pixels."""
    return {name: value for name, value in dataclasses.asdict(config).items() if value}


class SpatialTransform(NamedTuple):
    """An in-plane transform: flips of the axes, then an affine map."""

    flips: tuple[bool, bool]  # whether rows and columns are reversed
    warp: Warp | None  # None: no affine map

    def slices(self, slices: np.ndarray) -> np.ndarray:
        """Transform values, float32 `[n, S, S]`, with bilinear interpolation and 0 outside of the slice."""
        flipped = self._flip(slices)
        return self.warp.linear(flipped) if self.warp else np.ascontiguousarray(flipped)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Transform labels, unsigned integers `[n, S, S]`, by nearest neighbour."""
        flipped = self._flip(labels)
        return self.warp.nearest(flipped) if self.warp else np.ascontiguousarray(flipped)

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return np.flip(array, tuple(axis for axis, flip in enumerate(self.flips, 1) if flip))


def draw_spatial_transform(
    size: int, pixel_mm: tuple[float, float], config: AugmentationConfig, rng: np.random.Generator
) -> SpatialTransform:
    """Draw flips, rotation, scaling and shift about the slice's centre.

    Args:
        size: S, pixels.
        pixel_mm: (dy, dx); the rotation preserves distances in mm.
        config: maximum rotation, scaling and shift, and the probability of flips.
        rng: random generator; the number of draws does not depend on the values drawn.
    """
    flip_rows, flip_columns = (rng.random(2) < config.flip_probability).tolist()
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    scale = 1 / (1 + rng.uniform(-config.scaling, config.scaling))
    shift = rng.uniform(-config.shift, config.shift, 2) * size
    warp = None
    if config.rotation or config.scaling or config.shift:
        cos, sin, aspect = scale * math.cos(angle), scale * math.sin(angle), pixel_mm[1] / pixel_mm[0]
        matrix = np.array([[cos, -sin * aspect], [sin / aspect, cos]])  # output pixels to input pixels
        centre = np.full(2, (size - 1) / 2)
        warp = Warp(size, matrix, centre - matrix @ (centre + shift))
    return SpatialTransform((flip_rows, flip_columns), warp)


def augment_intensity(slices: np.ndarray, config: AugmentationConfig, rng: np.random.Generator) -> None:
    """Change contrast, brightness, gamma and noise of float32 `[n, S, S]` in [0, 1], in place.

    The noise is the sum of four uniform bytes: close to normal within 2.5 SD, limited to 3.5 SD, and four times faster
    than normal noise.
    """
    contrast = np.float32(1 + rng.uniform(-config.intensity, config.intensity))
    brightness = np.float32(rng.uniform(-config.intensity, config.intensity))
    gamma = np.float32((1 + config.gamma) ** rng.uniform(-1, 1))
    noise = np.float32(rng.uniform(0, config.noise) / _BYTES_SD)
    # SFC64 is twice as fast as the generator of Grain.
    noise_rng = np.random.Generator(np.random.SFC64(int(rng.integers(2**63))))
    for values in slices:  # one slice at a time, so that it stays in the processor's cache
        if config.intensity:
            values *= contrast
            values += brightness
            np.clip(values, 0, 1, out=values)
        if config.gamma:
            np.power(values, gamma, out=values)
        if config.noise:
            words = noise_rng.integers(0, 2**64, -(-values.size // 2), np.uint64)
            four = words.view(np.uint8)[: 4 * values.size].reshape(4, *values.shape)
            total = np.add(four[0], four[1], dtype=np.uint16)
            total += four[2]
            total += four[3]
            deviation = total.astype(np.float32)
            deviation -= np.float32(_BYTES_MEAN)
            deviation *= noise
            values += deviation
            np.clip(values, 0, 1, out=values)
