"""Host arrays of a session (features, memories, logits): in memory up to a limit, and in temporary files beyond it.

The files are unlinked. The depth of a scan and the number of objects are limited by the disk, not by the memory.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref

import numpy as np

from sam2_3dmed_jax.errors import UserError

LIMIT = 4 << 30  # bytes of host memory for the arrays of one session


class HostArrays:
    """Allocates the arrays of one session."""

    def __init__(self, limit: int = LIMIT):
        """Allow `limit` bytes in memory."""
        self._free_memory = limit
        # Bytes on disk that no array has reserved; the files themselves grow only when they are written.
        self._free_disk: int | None = None

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """Allocate an array of zeros; it is in a file if it does not fit into the free memory.

        Raises:
            UserError: it does not fit on the disk.
        """
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if size <= self._free_memory:
            self._free_memory -= size
            array = np.zeros(shape, dtype)
            weakref.finalize(array, self._release_memory, size)
            return array
        folder = tempfile.gettempdir()
        if self._free_disk is None:
            self._free_disk = shutil.disk_usage(folder).free
        if self._free_disk < size:  # Without this check, writing to the map on a full disk would kill the process.
            raise UserError(
                f"{folder} has no room for {size / 2**30:.1f} GiB of features; set TMPDIR to a folder with more space"
            )
        self._free_disk -= size
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the map keeps the file open, and deletes it when it is freed
        array = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
        weakref.finalize(array, self._release_disk, size)
        return array

    def _release_memory(self, size: int) -> None:
        """Make the memory of a freed array available to later arrays, as after the reset of a session."""
        self._free_memory += size

    def _release_disk(self, size: int) -> None:
        """Make the disk space of a freed array available to later arrays."""
        self._free_disk = (self._free_disk or 0) + size
