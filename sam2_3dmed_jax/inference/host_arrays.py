"""Where a session keeps what is as long as its volume: features, memories, logits.

Host memory up to a limit in all, and unlinked temporary files beyond it, so that the depth of a scan and the number of
objects are bounded by the disk.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref

import numpy as np

from sam2_3dmed_jax.errors import UserError

LIMIT = 4 << 30  # bytes of a session's arrays in host memory


class HostArrays:
    """Allocates the arrays of one session."""

    def __init__(self, limit: int = LIMIT):
        """Allow `limit` bytes in memory."""
        self._left = limit
        self._room: int | None = None  # bytes on disk not promised to an array yet; files grow only when written

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """An array of zeros; in a file when it does not fit in what is left of the limit.

        Raises:
            UserError: the disk has no room for it.
        """
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if size <= self._left:
            self._left -= size
            array = np.zeros(shape, dtype)
            weakref.finalize(array, self._give_back, size)
            return array
        folder = tempfile.gettempdir()
        if self._room is None:
            self._room = shutil.disk_usage(folder).free
        if self._room < size:  # met later, through the map, a full disk would kill the process
            raise UserError(
                f"{folder} has no room for {size / 2**30:.1f} GiB of features: set TMPDIR to a folder that has"
            )
        self._room -= size
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the map keeps it open, and its space goes with the map
        array = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
        weakref.finalize(array, self._give_back_on_disk, size)
        return array

    def _give_back(self, size: int) -> None:
        """A session that is reset drops arrays; those that follow may take their place in memory."""
        self._left += size

    def _give_back_on_disk(self, size: int) -> None:
        """The same of files: many sessions on one volume's features drop theirs."""
        self._room = (self._room or 0) + size
