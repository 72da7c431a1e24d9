"""Untrusted `.npz` files: the named arrays of a file, checked before they are read, and never unpickled by NumPy.

Numbers are read as they are stored. Object arrays, which are pickles, become nested lists (`plain_pickle`).
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection
from typing import IO, Any

import numpy as np

from experiments.segfm3d.plain_pickle import NotPlainError, read_plain_pickle
from sam2_3dmed_jax.errors import UserError, cut
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.runtime.foreign_errors import foreign
from sam2_3dmed_jax.runtime.user_files import check_regular
from sam2_3dmed_jax.volume.image_file import check_promise

MAX_BYTES = 8 << 30  # of one array
MOST_DEFLATED = 1032  # decompressed bytes per compressed byte, at most: deflate encodes 258 bytes with 2 bits
MOST_PICKLED = 4 << 20  # bytes of an object array: 255 classes with thousands of clicks each
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ENCRYPTED = 0x1


def read_npz(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Any]:
    """Read some arrays of a file; others are not looked at.

    Args:
        path: the file.
        names: of the arrays.

    Returns:
        The arrays that the file has, by name: numbers as read-only arrays, texts and objects as nested lists.

    Raises:
        UserError: the file is damaged, is not a .npz file, or has content other than plain values.
    """
    with (
        foreign(
            "numpy", lambda reason: f"{path} is damaged, or is not a .npz file ({reason}); copy or download it again"
        ),
        _opened(path) as archive,
    ):
        members = {info.filename: info for info in archive.infolist()}
        return {
            name: _read_member(f"{path}: {name}", path, archive, members[f"{name}.npy"])
            for name in names
            if f"{name}.npy" in members
        }


def _opened(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    try:
        check_regular(path, "give a .npz file of the challenge")
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a .npz file of the challenge") from None


def write_npz(path: str | os.PathLike[str], **arrays: Any) -> None:
    """Write a compressed .npz file atomically; lists of dicts are pickled as NumPy does, as the challenge stores them.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path, ".npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _read_member(where: str, path: str | os.PathLike[str], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Read one array; `where` names it in messages."""
    if info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
        raise UserError(f"{where} is encrypted or compressed by another method; write it with numpy.savez_compressed")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise UserError(f"{where} has version {version} of the NumPy format; write it with numpy.savez_compressed")
        shape, is_fortran, dtype = _HEADERS[version](file)
        stored = info.file_size - file.tell()
        if dtype.kind == "O":
            return _read_objects(where, file, stored)
        if dtype.kind not in "biufU" or dtype.names:
            raise UserError(f"{where} has the dtype {cut(str(dtype), 40)}; give numbers, as the challenge does")
        promised = math.prod(shape) * dtype.itemsize
        if promised > MAX_BYTES or min(shape, default=0) < 0:
            raise UserError(f"{where} promises the shape {cut(str(shape), 60)} of {dtype}, expected at most 8 GiB")
        check_promise(path, promised, min(stored, (info.compress_size + 1) * MOST_DEFLATED))
        array = np.frombuffer(file.read(promised), dtype) if promised else np.empty(0, dtype)
        array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
        return array.tolist() if dtype.kind == "U" else array


def _read_objects(where: str, file: IO[bytes], stored: int) -> Any:
    if stored > MOST_PICKLED:
        raise UserError(f"{where} has {stored} bytes of Python objects, more than {MOST_PICKLED}; give fewer prompts")
    try:
        return read_plain_pickle(file.read())
    except NotPlainError as error:
        raise UserError(
            f"{where} contains {cut(str(error), 80)}; only lists, dicts, texts, numbers and arrays of them are read, "
            "because other pickles can run programs"
        ) from error
