"""Blocks of a volume's slices as the image encoder takes them, prepared on the device.

The host uploads grey slices as they are stored, each once. A program of its own windows, resizes and normalises them,
so that the encoder is compiled once for all sizes of slices; this program is small and compiled per size.
"""

from __future__ import annotations

import jax
import numpy as np

from sam2_3dmed_jax.inference.padding import pad_rows
from sam2_3dmed_jax.runtime.imagenet import normalise
from sam2_3dmed_jax.volume.device_intensity import prepare, to_upload
from sam2_3dmed_jax.volume.intensity import PreparedSlices, resize_matrices, window_ends

Slices = np.ndarray | PreparedSlices  # float32 [D, S, S, 3], normalised


class DeviceSlices:
    """Blocks of T slices `[T, S, S, 3]` float32, normalised; the last block is padded."""

    def __init__(self, slices: Slices, rows: int):
        """Take the slices of a volume; `rows` is T."""
        self._slices, self._rows = slices, rows
        if isinstance(slices, PreparedSlices):
            size = slices.shape[1]
            matrices = resize_matrices(slices.volume.array.shape[1:], (size, size))
            self._window_and_matrices = jax.device_put((*window_ends(slices.window), *matrices))

    def block(self, at: slice) -> jax.Array | np.ndarray:
        """Return slices `at`, at most T, with padding; on the device if they are prepared there."""
        if isinstance(self._slices, PreparedSlices):
            grey = pad_rows(to_upload(self._slices.volume.array[at]), self._rows)
            prepared: jax.Array = prepare_block(grey, *self._window_and_matrices)
            return prepared
        return pad_rows(np.asarray(self._slices[at], np.float32), self._rows)


@jax.jit
def prepare_block(
    grey: jax.Array,
    low: jax.Array,
    width: jax.Array,
    vertical: jax.Array | None,
    horizontal: jax.Array | None,
) -> jax.Array:
    """Return slices `[T, H, W]` as the encoder takes them, float32 `[T, S, S, 3]`; see `device_intensity.prepare`."""
    return normalise(prepare(grey, low, width, vertical, horizontal))
