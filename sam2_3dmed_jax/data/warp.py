"""In-plane resampling of slices by one affine map with fixed-point coordinates, on the host and in compiled programs.

A map is int32 `[2, 3]` in units of 1/65536 pixel: `map @ (row, column, 1)` of a pixel of the result is its origin in
the slice. Integers give NumPy and every device the same origins. Float32 does not, because compilers fuse products with
sums: a prompt that the host draws could then be outside of the mask that the device computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.imagenet import ArrayT

if TYPE_CHECKING:
    import jax

_BITS = 16
ONE = 1 << _BITS  # one pixel
IDENTITY = np.array([[ONE, 0, 0], [0, ONE, 0]], np.int32)
_BORDER = (1, 2)  # zeros before and after a slice, so that points outside of it need no condition
_LIMIT = 1 << 14  # pixels; twice as much is the limit of int32


def fixed_point_map(matrix: np.ndarray, offset: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the map `matrix @ p + offset` from pixels p of the result to pixels of the slice, rounded.

    Args:
        matrix: float64 `[2, 2]`, for (row, column).
        offset: float64 `[2]`, pixels.
        shape: (rows, columns) of the result.

    Returns:
        int32 `[2, 3]`.

    Raises:
        UserError: a pixel has its origin more than 16,384 pixels away.
    """
    corners = np.array([(r, c) for r in (0, shape[0] - 1) for c in (0, shape[1] - 1)])
    farthest = float(np.abs(corners @ matrix.T + offset).max())
    if farthest > _LIMIT:
        raise UserError(f"data.augmentation: it moves pixels by {farthest:.0f}; lower shift, scaling or rotation")
    return np.rint(np.column_stack([matrix, offset]) * ONE).astype(np.int32)


def nearest(slices: ArrayT, inverse: ArrayT, shape: tuple[int, int]) -> ArrayT:
    """Resample by nearest neighbour, with 0 outside of the slice.

    Args:
        slices: `[n, h, w]`, any dtype.
        inverse: int32 `[2, 3]`, the map.
        shape: (rows, columns) of the result.

    Returns:
        `[n, rows, columns]`.
    """
    rows, columns = _origins(inverse, shape)
    index = _index((rows + ONE // 2) >> _BITS, (columns + ONE // 2) >> _BITS, slices.shape[1:])
    return _gather(_with_border(slices), index)


def linear(slices: jax.Array, inverse: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Resample float32 `[n, h, w]` by bilinear interpolation, as `nearest`; pixels keep their values bit for bit."""
    rows, columns = _origins(inverse, shape)
    _, h, w = slices.shape
    rows, columns = rows.clip(-ONE, h * ONE), columns.clip(-ONE, w * ONE)
    # In units of pixels; 16 bits are exact in float32.
    down, right = (((x & (ONE - 1)).astype(np.float32) / ONE)[None] for x in (rows, columns))
    index = _index(rows >> _BITS, columns >> _BITS, (h, w))
    pixels, below = _with_border(slices), w + sum(_BORDER)

    def between(at: jax.Array) -> jax.Array:
        left = _gather(pixels, at)
        return left + right * (_gather(pixels, at + 1) - left)

    upper = between(index)
    return upper + down * (between(index + below) - upper)


def _origins(inverse: ArrayT, shape: tuple[int, int]) -> tuple[ArrayT, ArrayT]:
    """Return row and column of the origin of each pixel, int32 `[rows, columns]`. Sums may wrap, their total not."""
    rows, columns = np.arange(shape[0], dtype=np.int32)[:, None], np.arange(shape[1], dtype=np.int32)[None, :]
    row, column = (inverse[i, 0] * rows + (inverse[i, 1] * columns + inverse[i, 2]) for i in range(2))
    return row, column


def _index(rows: ArrayT, columns: ArrayT, shape: Sequence[int]) -> ArrayT:
    """Return indices of whole pixels in `_with_border`; pixels outside of the slice are in the border."""
    before, after = _BORDER
    width = shape[1] + before + after
    return (rows.clip(-1, shape[0]) + before) * width + columns.clip(-1, shape[1]) + before


def _with_border(slices: ArrayT) -> ArrayT:
    """Return the pixels of slices with a border of zeros, `[n, pixels]`."""
    xp = slices.__array_namespace__()
    padded: ArrayT = xp.pad(slices, ((0, 0), _BORDER, _BORDER))
    return padded.reshape(len(slices), -1)


def _gather(pixels: ArrayT, index: ArrayT) -> ArrayT:
    """Return `pixels[:, index]`; all indices are inside."""
    if isinstance(pixels, np.ndarray):
        return pixels[:, index]
    # XLA's estimate for a TPU is ten times less time than with the n slices as the last axis.
    gathered: ArrayT = pixels.at[:, index].get(mode="promise_in_bounds")
    return gathered
