"""Images and label maps that Python programs hold: files, images of nibabel and SimpleITK, and NumPy arrays."""

from __future__ import annotations

import os
from typing import Any

import nibabel as nib
import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import io, itk, nifti
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.image_file import ImageFile, check_size
from sam2_3dmed_jax.volume.label_layers import LabelFile, LabelLayers, whole_label_map

_KINDS = "a path, an image of nibabel or SimpleITK, or a NumPy array with its affine"


def open_image(image: Any, affine: Any = None, index: int | None = None, resample: bool = False) -> ImageFile:
    """Check an image; its voxels are read later (`io.volume_of`).

    Args:
        image: a path of a format that `predict` reads; an image of nibabel or SimpleITK; an array `[i, j, k]`; or an
            image that this function has opened.
        affine: `[4, 4]`, voxel index to RAS millimetres, of an array; other images have their own.
        index: 0-based volume of a 4D image.
        resample: put irregular slices of a DICOM series on a regular grid.

    Raises:
        UserError: another object, an array without an affine or with another shape, or as `io.read_volume`.
    """
    if isinstance(image, np.ndarray):
        return _array_image(image, affine)
    if affine is not None:
        raise UserError(f"affine: it is for NumPy arrays, and a {type(image).__name__} has its own; leave it out")
    if isinstance(image, ImageFile):
        return image
    if isinstance(image, str | os.PathLike):
        return io.open_image(image, index=index, resample=resample)
    if isinstance(image, nib.spatialimages.SpatialImage):
        return nifti.from_nibabel(image, index)
    if type(image).__module__.startswith("SimpleITK"):
        return itk.from_simpleitk(image)
    raise UserError(f"image: a {type(image).__name__} is not an image; give {_KINDS}")


def read_label_map(labels: Any, like: Volume) -> LabelLayers:
    """Return the labels of a volume that are given as a file, an image, or an array in the axis order of the image.

    Raises:
        UserError: they are not on the grid of the volume, or are not integers.
    """
    return open_label_map(labels, like).read(like.grid)


def open_label_map(labels: Any, like: Volume) -> LabelFile:
    """Return labels that are given as a file, an image on any grid, or an array in the axis order of a volume.

    Raises:
        UserError: the file cannot be read, or the array has another shape.
    """
    if isinstance(labels, str | os.PathLike):
        return io.open_labels(labels)
    if isinstance(labels, np.ndarray):
        if labels.shape != like.grid.shape:
            raise UserError(f"an array of shape {labels.shape} does not fit an image of shape {like.grid.shape}")
        if labels.dtype == bool:
            labels = labels.astype(np.uint8)
        image = _array_image(labels, like.grid.affine)
    else:
        image = open_image(labels)
    return whole_label_map(image.grid.source or "the drawn labels", image)


def _array_image(array: np.ndarray, affine: Any) -> ImageFile:
    if affine is None:
        raise UserError(
            "affine: an array needs one, from voxel index to RAS millimetres; for spacings alone give "
            "affine=np.diag([di, dj, dk, 1])"
        )
    try:
        matrix = np.asarray(affine, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise UserError(f"affine: its shape is {matrix.shape}, expected 4 x 4, from voxel index to RAS millimetres")
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        raise UserError(
            f"image: the array has shape {array.shape} of {array.dtype}, expected three axes of real numbers"
        )
    check_size("the array", array.shape)
    i, j, k = array.shape
    return ImageFile(Grid((i, j, k), matrix), lambda dtype: np.asarray(array, dtype))
