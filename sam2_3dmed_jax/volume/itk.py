"""NRRD and MetaImage reader: three axes and one number per voxel.

Headers are read by `text_header`, and voxels by `voxel_stream`, so that no native library parses a file of unknown
origin. The geometry is the one that ITK reads. Neither format stores the modality.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS, Grid
from sam2_3dmed_jax.volume.image_file import ImageFile, check_size, optional
from sam2_3dmed_jax.volume.text_header import ImageHeader, read_header
from sam2_3dmed_jax.volume.voxel_stream import TEXT, check_stored, read_parts

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
        UserError: the file is damaged or truncated, not 3D, has vectors or complex numbers, is not in millimetres, or
            is too large.
    """
    image, _ = _open(path, layers=False)
    return image


def open_layers(path: str | os.PathLike[str]) -> tuple[ImageFile, Mapping[str, str]]:
    """Read the header of a NRRD that may store several label maps: `read` returns `[i, j, k, layer]`.

    Returns:
        The image, and the key/value pairs of its header.

    Raises:
        UserError: as `open_image`; or the layers are not the first axis.
    """
    return _open(path, layers=True)


def _open(path: str | os.PathLike[str], layers: bool) -> tuple[ImageFile, Mapping[str, str]]:
    header = read_header(path)
    if any(unit.lower() not in _MILLIMETRES for unit in header.units):
        raise UserError(
            f"{path} declares lengths in {listed(header.units)}, expected millimetres: rewrite its geometry in mm"
        )
    shape, count = header.shape, header.components
    if header.affine is None:
        raise UserError(f"{path} has {len(shape)} axes of lengths {shape[:8]}, expected three: give one 3D volume")
    if count != 1 and not layers:
        raise UserError(
            f"{path} holds vectors of {count} numbers, expected one real number per voxel: give a scalar volume"
        )
    if count != 1 and not header.components_first:
        raise UserError(f"{path} has layers on another axis than the first: save it again with 3D Slicer")
    check_size(path, (*shape, count), header.dtype.itemsize)
    numbers = math.prod(shape) * count // len(header.parts)
    for part in header.parts:
        check_stored(part, numbers * (1 if part.encoding == TEXT else header.dtype.itemsize))
    grid = Grid((shape[0], shape[1], shape[2]), header.affine, str(path))
    files = (header.path, *(part.path for part in header.parts))
    return ImageFile(grid, functools.partial(_read, header, layers), files=files), header.pairs


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


def _read(header: ImageHeader, layers: bool, dtype: type | None) -> np.ndarray:
    """Read voxels; with `layers`, the last axis of the result is the first axis of the file."""
    shape = (header.components, *header.shape) if layers else header.shape
    voxels = read_parts(header.parts, shape, header.dtype)
    voxels = np.moveaxis(voxels, 0, -1) if layers else voxels
    return voxels.astype(dtype or header.dtype.newbyteorder("="), copy=False)
