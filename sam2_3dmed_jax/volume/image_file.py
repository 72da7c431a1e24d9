"""What every image format shares: a checked header with its voxels still on disk, limits, and atomic writing."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid

AIR_HU = -1024.0
MAX_BYTES = 8 * 2**30  # of a volume as float32; a larger promise is a damaged header
DEFLATE_LIMIT = 1032  # the largest ratio that gzip and zlib can reach, so a cap on what a compressed file may hold


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image whose header has been read and checked, and whose voxels have not been read.

    Attributes:
        grid: the voxel grid in file order.
        read: takes a dtype, or None for what the file's scaling gives; returns `[i, j, k]`, raises UserError.
        modality: DICOM's word for it; None where the format has no place for it.
    """

    grid: Grid
    read: Callable[[type | None], np.ndarray]
    modality: str | None = None


def check_size(path: str | os.PathLike[str], shape: Sequence[int]) -> None:
    """Refuses a volume before it is allocated.

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
    """Compares the bytes that a header promises with the most that its file can hold.

    Raises:
        UserError: the file is too short for its header.
    """
    if most < promised:
        raise UserError(
            f"{path} is truncated: its header promises {promised} bytes, and the file of {os.path.getsize(path)} bytes "
            f"can hold at most {most}: copy or download it again"
        )


def one_line(error: BaseException) -> str:
    """A library's message without its line breaks, cut where it grows long."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."


def optional(module: str, path: str | os.PathLike[str]) -> Any:
    """Imports a library of the extra `[dicom]`, which reading or writing `path` needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{path} needs {module.partition('.')[0]}, which is not installed: pip install 'sam2-3dmed-jax[dicom]'"
        ) from None


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], suffix: str) -> Iterator[Path]:
    """Gives a temporary name in the folder of `path`, which is created, and renames it at the end.

    Raises:
        UserError: the file cannot be written; nothing is left behind.
    """
    target = Path(path)
    part = target.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}): give a folder with room and write access") from None
    finally:
        with contextlib.suppress(OSError):  # gone after a success; its folder may be no folder at all
            part.unlink()
