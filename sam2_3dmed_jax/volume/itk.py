"""NRRD and MetaImage reader (SimpleITK): three axes and one number per voxel.

ITK returns origin and directions in LPS (to patient left, posterior, superior) for every space that a file declares; a
`Grid` is in RAS. Neither format stores the modality.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS, Grid
from sam2_3dmed_jax.volume.image_file import (
    DEFLATE_LIMIT,
    ImageFile,
    check_promise,
    check_size,
    one_line,
    optional,
)

_HEADER_BYTES = 2**16
# Limit of the bytes of voxels per byte of the file; other encodings (bzip2, text) have no useful limit.
_CAPACITY = {"raw": 1, "gzip": DEFLATE_LIMIT, "gz": DEFLATE_LIMIT}
_MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")


def open_image(path: str | os.PathLike[str], index: int | None = None, resample: bool = False) -> ImageFile:
    """Read a header and check it before voxels are allocated.

    Args:
        path: a .nrrd, .nhdr, .mha or .mhd file.
        index: unused; each file has one volume.
        resample: unused; the grid is regular.

    Raises:
        UserError: SimpleITK is missing, or the file is damaged or truncated, not 3D, has vectors or complex numbers, is
            not in millimetres, or is too large.
    """
    sitk = optional("SimpleITK", path)
    header = _header(path)
    data_path = _data_file(path, header)
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # the checks below replace what ITK prints
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read by SimpleITK ({_reason(error)}): export the volume again") from None
    shape, pixels = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if len(shape) != 3:
        raise UserError(f"{path} has {len(shape)} axes of lengths {shape}, expected three: give one 3D volume")
    if reader.GetNumberOfComponents() != 1 or "complex" in pixels or "vector" in pixels:
        raise UserError(f"{path} holds {pixels} voxels, expected one real number each: give a scalar volume")
    check_size(path, shape)
    voxel_bytes = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    compressed = header.get("compresseddata", "false").lower() == "true"
    factor = _CAPACITY.get("gzip" if compressed else header.get("encoding", "raw").lower())
    if data_path and factor:
        check_promise(data_path, math.prod(shape) * voxel_bytes, data_path.stat().st_size * factor)
    affine = lps_affine(reader.GetDirection(), reader.GetSpacing(), reader.GetOrigin())
    grid = Grid((shape[0], shape[1], shape[2]), affine, str(path))
    return ImageFile(grid, functools.partial(_read, reader, sitk, grid))


def lps_affine(direction: Sequence[float], spacing: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """Convert ITK's geometry to an affine.

    Args:
        direction: 3 x 3 matrix as 9 numbers, row by row; its columns are the axes i, j, k in LPS.
        spacing: mm along i, j, k.
        origin: LPS mm of the first voxel's centre.

    Returns:
        `[4, 4]` float64, voxel index to RAS millimetres.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing)
    affine[:3, 3] = origin
    return LPS_TO_RAS @ affine


def _read(reader: Any, sitk: Any, grid: Grid, dtype: type | None) -> np.ndarray:
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{grid.source} is truncated or damaged ({_reason(error)}): copy or export it again") from None
    return np.array(sitk.GetArrayViewFromImage(image).transpose(2, 1, 0), dtype=dtype)


def _header(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the fields of the text header, with names in lower case; empty if the header is not text."""
    fields: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give a readable file") from None
    for line in start.decode("latin-1").split("\n"):
        name, _, value = line.partition("=" if Path(path).suffix.lower() in (".mha", ".mhd") else ":")
        if not line.strip():
            break  # an empty line ends a NRRD header
        fields.setdefault(name.strip().lower(), value.strip())
        if name.strip() == "ElementDataFile":
            break  # the last field of a MetaImage
    return fields


def _data_file(path: str | os.PathLike[str], header: dict[str, str]) -> Path | None:
    """Return the file with the voxels; None for one file per slice, where ITK reports missing files."""
    units = re.findall(r'"([^"]*)"', header.get("space units", ""))
    if any(unit.strip().lower() not in _MILLIMETRES for unit in units):
        raise UserError(f"{path} declares lengths in {units}, expected millimetres: rewrite its geometry in mm")
    detached = header.get("data file") or header.get("datafile") or header.get("elementdatafile", "LOCAL")
    if detached.upper().startswith("LIST") or "%" in detached:
        return None
    data_path = Path(path) if detached.upper() == "LOCAL" else Path(path).parent / detached
    if not data_path.is_file():
        raise UserError(f"{path} is a header without data, expected {data_path}: copy that file there too")
    return data_path


def _reason(error: BaseException) -> str:
    """Return ITK's message without its file names and line numbers."""
    return one_line(error).rpartition("ITK ERROR: ")[2]
