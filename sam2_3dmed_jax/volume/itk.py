"""NRRD and MetaImage reader: three axes and one number per voxel.

SimpleITK reads the geometry. Voxels are read and verified by `voxel_stream`, because ITK ignores checksums.

ITK returns origin and directions in LPS (to patient left, posterior, superior) for every space that a file declares; a
`Grid` is in RAS. Neither format stores the modality.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Sequence
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
from sam2_3dmed_jax.volume.text_header import TextHeader, read_text_header, stored_voxels
from sam2_3dmed_jax.volume.voxel_stream import RAW, StoredVoxels, read_voxels

# Limit of the bytes of voxels per byte of the file; bzip2 has no useful limit.
_CAPACITY = {RAW: 1, "gzip": DEFLATE_LIMIT, "zlib": DEFLATE_LIMIT}
_MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")


def open_image(
    path: str | os.PathLike[str], index: int | None = None, resample: bool = False, skip_unreadable: bool = False
) -> ImageFile:
    """Read a header and check it before voxels are allocated.

    Args:
        path: a .nrrd, .nhdr, .mha or .mhd file.
        index: unused; each file has one volume.
        resample: unused; the grid is regular.
        skip_unreadable: unused; an image is one file.

    Raises:
        UserError: SimpleITK is missing, or the file is damaged or truncated, not 3D, has vectors or complex numbers, is
            not in millimetres, or is too large.
    """
    image, _ = _open(path, layers=False)
    return image


def open_layers(path: str | os.PathLike[str]) -> tuple[ImageFile, dict[str, str]]:
    """Read the header of a NRRD that may store several label maps: `read` returns `[i, j, k, layer]`.

    Returns:
        The image, and the key/value pairs of its header.

    Raises:
        UserError: as `open_image`; or the layers are not the first axis.
    """
    return _open(path, layers=True)


def _open(path: str | os.PathLike[str], layers: bool) -> tuple[ImageFile, dict[str, str]]:
    sitk = optional("SimpleITK", path)
    header = read_text_header(path)
    _check_units(header)
    _ = header.data_file  # a missing file is an error here, which ITK would describe in its own words
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    # ITK chooses the format of a MetaImage by its suffix, which it knows in lower case only.
    reader.SetImageIO("MetaImageIO" if header.is_meta_image else "NrrdImageIO")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # the checks below replace what ITK prints
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read by SimpleITK ({_reason(error)}): export the volume again") from None
    shape, pixels = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if len(shape) != 3:
        raise UserError(f"{path} has {len(shape)} axes of lengths {shape}, expected three: give one 3D volume")
    count = reader.GetNumberOfComponents()
    if "complex" in pixels or ((count != 1 or "vector" in pixels) and not layers):
        raise UserError(f"{path} holds {pixels} voxels, expected one real number each: give a scalar volume")
    if count != 1 and header.fields.get("kinds", "").split()[:1] == ["domain"]:
        raise UserError(f"{path} has layers on another axis than the first: save it again with 3D Slicer")
    check_size(path, (*shape, count))
    voxel = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID(), count)).dtype
    size = math.prod(shape) * count * voxel.itemsize
    stored = stored_voxels(header, size)
    if stored and stored.encoding in _CAPACITY:
        check_promise(stored.path, size, stored.path.stat().st_size * _CAPACITY[stored.encoding])
    affine = lps_affine(reader.GetDirection(), reader.GetSpacing(), reader.GetOrigin())
    grid = Grid((shape[0], shape[1], shape[2]), affine, str(path))
    if stored is None:
        read = functools.partial(_read_by_itk, reader, sitk, grid, layers)
    else:
        order = ">" if header.big_endian else "<"
        read = functools.partial(_read, stored, voxel.newbyteorder(order), grid, count if layers else 0)
    return ImageFile(grid, read), {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


def from_simpleitk(image: Any) -> ImageFile:
    """Return an image of SimpleITK, which is in memory.

    Raises:
        UserError: it does not have three axes and one real number per voxel, or it is too large.
    """
    shape, pixels = image.GetSize(), image.GetPixelIDTypeAsString()
    if len(shape) != 3 or image.GetNumberOfComponentsPerPixel() != 1 or "complex" in pixels:
        raise UserError(
            f"the image has {len(shape)} axes of {pixels}, expected three of real numbers: give a 3D volume"
        )
    check_size("the image", shape)
    affine = lps_affine(image.GetDirection(), image.GetSpacing(), image.GetOrigin())
    sitk = optional("SimpleITK", "the image")

    def read(dtype: type | None) -> np.ndarray:
        return np.array(sitk.GetArrayViewFromImage(image).swapaxes(0, 2), dtype=dtype)

    return ImageFile(Grid((shape[0], shape[1], shape[2]), affine), read)


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


def _check_units(header: TextHeader) -> None:
    units = re.findall(r'"([^"]*)"', header.fields.get("space units", ""))
    if any(unit.strip().lower() not in _MILLIMETRES for unit in units):
        raise UserError(f"{header.path} declares lengths in {units}, expected millimetres: rewrite its geometry in mm")


def _read(stored: StoredVoxels, voxel: np.dtype, grid: Grid, layers: int, dtype: type | None) -> np.ndarray:
    """Read voxels; with `layers`, the last axis of the result is the first axis of the file."""
    voxels = read_voxels(stored, (layers, *grid.shape) if layers else grid.shape, voxel)
    voxels = np.moveaxis(voxels, 0, -1) if layers else voxels
    return voxels.astype(dtype or voxel.newbyteorder("="), copy=False)


def _read_by_itk(reader: Any, sitk: Any, grid: Grid, layers: bool, dtype: type | None) -> np.ndarray:
    """Read voxels that are stored as text or in several files."""
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{grid.source} is truncated or damaged ({_reason(error)}): copy or export it again") from None
    voxels = np.array(sitk.GetArrayViewFromImage(image).swapaxes(0, 2), dtype=dtype)
    return voxels.reshape((*grid.shape, -1)) if layers else voxels


def _reason(error: BaseException) -> str:
    """Return ITK's message without its file names and line numbers."""
    return one_line(error).rpartition("ITK ERROR: ")[2]
