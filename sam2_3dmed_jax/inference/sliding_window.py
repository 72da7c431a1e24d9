"""Sliding windows: a function of patches over a volume of any size, weighted towards each patch's middle.

As nnU-Net: windows overlap by half, evenly spread, each weighted by a Gaussian of an eighth of the patch. A volume that
is smaller than a patch lies in its middle, between zeros. No mirroring at test time: anatomy is never mirrored here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

OVERLAP = 0.5  # of two neighbouring windows
SIGMA = 1 / 8  # of the Gaussian, in patches

Triple = tuple[int, int, int]


def window_starts(size: int, patch: int) -> list[int]:
    """First voxels of the windows along an axis, from 0 to `size - patch`, at most `(1 - OVERLAP) * patch` apart."""
    if size <= patch:
        return [0]
    count = math.ceil((size - patch) / (patch * (1 - OVERLAP))) + 1
    return np.rint(np.linspace(0, size - patch, count)).astype(int).tolist()


def window_weights(patch: Triple) -> np.ndarray:
    """The weight of each voxel of a window, float32 of its shape, positive and at most 1."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n * SIGMA)) ** 2) for n in patch]
    z, y, x = axes
    weights = z[:, None, None] * y[:, None] * x
    return (weights / weights.max()).astype(np.float32)


def slide(
    function: Callable[[np.ndarray], np.ndarray],
    volume: np.ndarray,
    patch: Triple,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The weighted mean of a function over all windows.

    Args:
        function: from float32 `[1, *patch]` to `[1, *patch, C]`.
        volume: float32 `[D, H, W]`.
        patch: voxels of a window.
        progress: called with (windows done, windows).

    Returns:
        float32 `[C, D, H, W]`.
    """
    pads = [(max(p - n, 0) // 2, max(p - n, 0) - max(p - n, 0) // 2) for n, p in zip(volume.shape, patch, strict=True)]
    padded = np.pad(volume, pads)
    weights = window_weights(patch)
    whole = np.zeros(padded.shape, np.float32)
    total: np.ndarray | None = None
    starts = list(itertools.product(*(window_starts(n, p) for n, p in zip(padded.shape, patch, strict=True))))
    for done, start in enumerate(starts, 1):
        box = tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
        found = np.moveaxis(np.asarray(function(padded[box][None])[0], np.float32), -1, 0)
        if total is None:
            total = np.zeros((len(found), *padded.shape), np.float32)
        total[:, *box] += found * weights
        whole[box] += weights
        if progress:
            progress(done, len(starts))
    assert total is not None  # there is a window at least
    total /= whole
    inside = [slice(low, low + n) for (low, _), n in zip(pads, volume.shape, strict=True)]
    return total[:, *inside]
