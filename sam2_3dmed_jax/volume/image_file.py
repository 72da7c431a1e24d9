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
from sam2_3dmed_jax.volume.geometry import Grid

AIR_HU = -1024.0
MAX_BYTES = 8 * 2**30  # limit of a volume as float32; a header with a larger size is damaged
DEFLATE_LIMIT = 1032  # largest ratio that gzip and zlib can reach: a limit on the contents of a compressed file


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image whose header has been read and checked, and whose voxels have not been read.

    Attributes:
        grid: the voxel grid in file order.
        read: takes a dtype, or None for the dtype of the file's scaling; returns `[i, j, k]`, raises UserError.
        modality: DICOM's Modality; None if the format does not store it.
        notes: what a user should know about the files, such as signs of missing slices.
    """

    grid: Grid
    read: Callable[[type | None], np.ndarray]
    modality: str | None = None
    notes: tuple[str, ...] = ()


def check_size(path: str | os.PathLike[str], shape: Sequence[int]) -> None:
    """Refuse a volume that is too large, before it is allocated.

    Raises:
        UserError: as float32 it would take more than `MAX_BYTES`.
    """
    size = 4 * math.prod(int(n) for n in shape)
    if size > MAX_BYTES:
        raise UserError(
            f"{path} promises shape {tuple(shape)}, {size / 2**30:.0f} GiB as float32, expected at most "
            f"{MAX_BYTES // 2**30} GiB: check the header, or crop the volume"
        )


def check_promise(path: str | os.PathLike[str], promised: int, most: int) -> None:
    """Compare the bytes that a header promises with the most that its file can contain.

    Raises:
        UserError: the file is too short for its header.
    """
    if most < promised:
        raise UserError(
            f"{path} is truncated: its header promises {promised} bytes, and the file of {os.path.getsize(path)} bytes "
            f"can hold at most {most}: copy or download it again"
        )


def one_line(error: BaseException) -> str:
    """Return a library's message on one line, cut to 200 characters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."


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
