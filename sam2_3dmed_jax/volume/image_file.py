"""Image headers with their voxels still on disk, and the limits that all formats share."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import host_memory
from sam2_3dmed_jax.volume.geometry import Grid

AIR_HU = -1024.0
LIMIT_VARIABLE = "SAM2_3DMED_MAX_VOLUME_GIB"  # limit of a volume in memory; default: half of the machine's memory


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image whose header has been read and checked, and whose voxels have not been read.

    Attributes:
        grid: the voxel grid in file order.
        load: takes a dtype, or None for the dtype of the file's scaling; returns `[i, j, k]`, raises UserError.
        modality: DICOM's Modality; None if the format does not store it.
        notes: what a user should know about the files, such as signs of missing slices.
        files: the files that it is read from.
    """

    grid: Grid
    load: Callable[[type | None], np.ndarray]
    modality: str | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str | os.PathLike[str], ...] = ()

    def read(self, dtype: type | None) -> np.ndarray:
        """Return the voxels `[i, j, k]`.

        Args:
            dtype: of the result; None: the dtype of the file's scaling.

        Raises:
            UserError: the voxels are damaged, or the free memory is too small for them.
        """
        try:
            return self.load(dtype)
        except MemoryError:
            raise UserError(
                f"{self.grid.source or 'the image'} of shape {self.grid.shape} does not fit into the free memory: "
                "close other programs, or crop the volume"
            ) from None


def volume_limit() -> int:
    """Return the largest size of a volume in memory, in bytes.

    Raises:
        UserError: the environment variable `LIMIT_VARIABLE` is not a positive number.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return host_memory.total_bytes() // 2
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < 2**30:
        raise UserError(f"{LIMIT_VARIABLE} is {text[:40]!r}, expected a number of GiB, such as 16: correct or unset it")
    return int(limit * 2**30)


def check_size(path: str | os.PathLike[str], shape: Sequence[int], itemsize: int = 4) -> None:
    """Refuse a volume that is too large, before it is allocated.

    Args:
        path: of the volume, for the message.
        shape: lengths of its axes.
        itemsize: bytes of a stored voxel; at least those of float32 are counted.

    Raises:
        UserError: it would take more than `volume_limit()`.
    """
    size, limit = max(4, itemsize) * math.prod(int(n) for n in shape), volume_limit()
    if size > limit:
        raise UserError(
            f"{path} promises shape {tuple(shape)}, {size / 2**30:.3g} GiB in memory, expected at most "
            f"{limit / 2**30:.3g} GiB: check the header, crop the volume, or set {LIMIT_VARIABLE} (GiB)"
        )


def check_promise(path: str | os.PathLike[str], promised: int, most: int, what: str = "bytes") -> None:
    """Compare what a header promises, by default bytes, with the most that its file can contain.

    Raises:
        UserError: the file is too short for its header.
    """
    if most < promised:
        raise UserError(
            f"{path} is truncated: its header promises {promised} {what}, and the file of {os.path.getsize(path)} "
            f"bytes can hold at most {most}: copy or download it again"
        )


def optional(module: str, path: str | os.PathLike[str]) -> Any:
    """Import a library of the extra `[dicom]`, which reading or writing `path` needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{path} needs {module.partition('.')[0]}, which is not installed: pip install 'sam2-3dmed-jax[dicom]'"
        ) from None
