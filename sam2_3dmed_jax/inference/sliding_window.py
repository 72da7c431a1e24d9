"""Sliding-window inference: a function of patches applied to a volume of any size, with Gaussian weights.

As in nnU-Net, windows are spread evenly, overlap by at least half, and are weighted by a Gaussian with a standard
deviation of an eighth of the patch. A volume smaller than a patch is centred in it and padded with zeros.
Test-time mirroring is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from sam2_3dmed_jax.runtime.progress import Progress

OVERLAP = 0.5  # smallest overlap of neighbouring windows, as a fraction of the patch
SIGMA = 1 / 8  # standard deviation of the Gaussian, as a fraction of the patch

Triple = tuple[int, int, int]


def window_starts(size: int, patch: int) -> list[int]:
    """Return the first voxel of each window along an axis, from 0 to `size - patch`.

    Neighbouring windows are at most `(1 - OVERLAP) * patch` voxels apart.
    """
    if size <= patch:
        return [0]
    count = math.ceil((size - patch) / (patch * (1 - OVERLAP))) + 1
    return [int(start) for start in np.rint(np.linspace(0, size - patch, count))]


def window_weights(patch: Triple) -> np.ndarray:
    """Return the weight of each voxel of a window, float32 of shape `patch`, positive and at most 1."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n * SIGMA)) ** 2) for n in patch]
    z, y, x = axes
    weights: np.ndarray = z[:, None, None] * y[:, None] * x
    return np.asarray(weights / weights.max(), np.float32)


def slide(
    function: Callable[[np.ndarray], np.ndarray],
    volume: np.ndarray,
    patch: Triple,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the weighted mean of a function over all windows.

    Args:
        function: maps float32 `[1, *patch]` to `[1, *patch, C]`.
        volume: float32 `[D, H, W]`.
        patch: shape of a window in voxels.
        progress: called after each window.

    Returns:
        float32 `[C, D, H, W]`.
    """
    pads = [(max(p - n, 0) // 2, max(p - n, 0) - max(p - n, 0) // 2) for n, p in zip(volume.shape, patch, strict=True)]
    padded = np.pad(volume, pads)
    weights = window_weights(patch)
    total_weight = np.zeros(padded.shape, np.float32)
    total: np.ndarray | None = None
    starts = list(itertools.product(*(window_starts(n, p) for n, p in zip(padded.shape, patch, strict=True))))
    for done, start in enumerate(starts, 1):
        window = tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
        values = np.moveaxis(np.asarray(function(padded[window][None])[0], np.float32), -1, 0)
        if total is None:
            total = np.zeros((len(values), *padded.shape), np.float32)
        total[:, *window] += values * weights
        total_weight[window] += weights
        if progress:
            progress("sliding windows", done, len(starts))
    assert total is not None  # There is at least one window.
    total /= total_weight
    inside = [slice(low, low + n) for (low, _), n in zip(pads, volume.shape, strict=True)]
    return total[:, *inside]
