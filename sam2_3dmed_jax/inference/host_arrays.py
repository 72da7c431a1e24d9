"""Host arrays of a session (features, memories, logits): in memory up to a limit, and in temporary files beyond it.

The files are unlinked. The depth of a scan and the number of objects are limited by the disk, not by the memory: the
pages of a file are in this process's memory only while they are used (see `release`).
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
import weakref

import jax
import numpy as np

from sam2_3dmed_jax.errors import UserError

LIMIT = 512 << 20  # bytes of host memory for the arrays of one session
LIMIT_WITHOUT_DISK = 4 << 30  # the same where the temporary folder has no room


class HostArrays:
    """Allocates the arrays of one session."""

    def __init__(self, limit: int = LIMIT, limit_without_disk: int = LIMIT_WITHOUT_DISK):
        """Allow `limit` bytes in memory; or more, `limit_without_disk`, for arrays that no file can hold."""
        self._limit, self._limit_without_disk = limit, max(limit, limit_without_disk)
        self._in_memory = 0  # bytes

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """Allocate an array of zeros; it is in a file if it does not fit into the memory that is allowed.

        Raises:
            UserError: it does not fit on the disk either.
        """
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if self._in_memory + size > self._limit:
            if (mapped := _zeros_in_file(shape, dtype, size)) is not None:
                return mapped
            if self._in_memory + size > self._limit_without_disk:
                raise UserError(
                    f"{tempfile.gettempdir()} has no room for {size / 2**30:.1f} GiB of features; set TMPDIR to a "
                    "folder with more space"
                )
        self._in_memory += size
        array = np.zeros(shape, dtype)
        weakref.finalize(array, self._release_memory, size)
        return array

    def _release_memory(self, size: int) -> None:
        """Make the memory of a freed array available to later arrays, as after the reset of a session."""
        self._in_memory -= size


def release(*arrays: np.ndarray | jax.Array) -> None:
    """Take the pages of arrays in files out of this process's memory; they are read again where they are needed.

    Their contents stay, in the system's cache of the file while it has memory to spare. Other arrays are left alone.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)  # NumPy has no public name for it
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _zeros_in_file(shape: tuple[int, ...], dtype: np.dtype, size: int) -> np.ndarray | None:
    """Return an array of zeros in an unlinked file, or None if the disk has no room for it.

    The room is taken at once: a disk that fills up under a mapped file would kill the process.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the map keeps it open, and deletes it when it is freed
        _reserve(file.fileno(), size)
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)
    except OSError:
        return None


def _reserve(file: int, size: int) -> None:
    """Take `size` bytes of the disk for a file; where the system cannot, only look whether they are free.

    Raises:
        OSError: they are not free.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    elif shutil.disk_usage(tempfile.gettempdir()).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
