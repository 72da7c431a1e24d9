"""Augmentation of a clip on the host: one in-plane motion for all its slices, then brightness, contrast, gamma, noise.

Slices keep their order and positions. Settings of zero leave what they would change as it is, to the bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.warp import Warp

_BYTES_SD = math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four uniform bytes
_BYTES_MEAN = 4 * 255 / 2


CHANGES = ("flip", "rotation", "scaling", "shift", "intensity", "gamma", "noise")  # settings that change pixels


def changes(config: DataConfig) -> dict[str, float]:
    """The settings that change pixels, of those that are on."""
    return {name: value for name in CHANGES if (value := getattr(config, name))}


class Motion(NamedTuple):
    """An in-plane motion: flips of the axes, then an affine."""

    flips: tuple[bool, bool]  # of rows, of columns
    warp: Warp | None

    def slices(self, slices: np.ndarray) -> np.ndarray:
        """Move float32 `[n, S, S]`, with bilinear interpolation; beyond the slice lies 0."""
        flipped = self._flip(slices)
        return self.warp.linear(flipped) if self.warp else np.ascontiguousarray(flipped)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Move uint8 `[n, S, S]`, each pixel taking the nearest label."""
        flipped = self._flip(labels)
        return self.warp.nearest(flipped) if self.warp else np.ascontiguousarray(flipped)

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return np.flip(array, tuple(axis for axis, flip in enumerate(self.flips, 1) if flip))


def draw_motion(size: int, pixel_mm: tuple[float, float], config: DataConfig, rng: np.random.Generator) -> Motion:
    """Draw flips, rotation, scaling and shift about the slice's centre.

    Args:
        size: S, pixels.
        pixel_mm: (dy, dx); the rotation is one in millimetres.
        config: how far to go.
        rng: the source of randomness; the number of draws does not depend on what is drawn.
    """
    flip_rows, flip_columns = (rng.random(2) < config.flip).tolist()
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    scale = 1 / (1 + rng.uniform(-config.scaling, config.scaling))
    shift = rng.uniform(-config.shift, config.shift, 2) * size
    warp = None
    if config.rotation or config.scaling or config.shift:
        cos, sin, aspect = scale * math.cos(angle), scale * math.sin(angle), pixel_mm[1] / pixel_mm[0]
        matrix = np.array([[cos, -sin * aspect], [sin / aspect, cos]])  # output pixels to input pixels
        centre = np.full(2, (size - 1) / 2)
        warp = Warp(size, matrix, centre - matrix @ (centre + shift))
    return Motion((flip_rows, flip_columns), warp)


def shade(slices: np.ndarray, config: DataConfig, rng: np.random.Generator) -> None:
    """Change float32 `[n, S, S]` in [0, 1] in place: contrast and brightness, gamma, white noise.

    The noise is the sum of four uniform bytes: as good as normal within 2.5 SD, bounded at 3.5, in a quarter of the
    time.
    """
    contrast = np.float32(1 + rng.uniform(-config.intensity, config.intensity))
    brightness = np.float32(rng.uniform(-config.intensity, config.intensity))
    gamma = np.float32((1 + config.gamma) ** rng.uniform(-1, 1))
    noise = np.float32(rng.uniform(0, config.noise) / _BYTES_SD)
    # A stream of its own, of a generator twice as fast as Grain's.
    stream = np.random.Generator(np.random.SFC64(int(rng.integers(2**63))))
    for values in slices:  # one by one, so that they stay in the processor's cache
        if config.intensity:
            values *= contrast
            values += brightness
            np.clip(values, 0, 1, out=values)
        if config.gamma:
            np.power(values, gamma, out=values)
        if config.noise:
            words = stream.integers(0, 2**64, -(-values.size // 2), np.uint64)
            four = words.view(np.uint8)[: 4 * values.size].reshape(4, *values.shape)
            total = np.add(four[0], four[1], dtype=np.uint16)
            total += four[2]
            total += four[3]
            deviation = total.astype(np.float32)
            deviation -= np.float32(_BYTES_MEAN)
            deviation *= noise
            values += deviation
            np.clip(values, 0, 1, out=values)
