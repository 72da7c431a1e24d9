"""Where a session keeps what is as long as its volume: features, memories, logits.

Host memory up to a limit in all, and unlinked temporary files beyond it, so that the depth of a scan and the number of
objects are bounded by the disk.
"""

from __future__ import annotations

import shutil
import tempfile

import numpy as np

from sam2_3dmed_jax.errors import UserError

LIMIT = 4 << 30  # bytes of a session's arrays in host memory


class HostArrays:
    """Allocates the arrays of one session."""

    def __init__(self, limit: int = LIMIT):
        """Allow `limit` bytes in memory."""
        self._left = limit

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """An array of zeros; in a file when it does not fit in what is left of the limit.

        Raises:
            UserError: the disk has no room for it.
        """
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if size <= self._left:
            self._left -= size
            return np.zeros(shape, dtype)
        folder = tempfile.gettempdir()
        if shutil.disk_usage(folder).free < size:  # met later, through the map, a full disk would kill the process
            raise UserError(
                f"{folder} has no room for {size / 2**30:.1f} GiB of features: set TMPDIR to a folder that has"
            )
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the map keeps it open, and its space goes with the map
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)
