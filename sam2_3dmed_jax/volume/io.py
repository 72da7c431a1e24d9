"""The door to images on disk: a CT as a `Volume`, label maps on its grid, whatever the format.

A folder or DICOM file is a DICOM series; .nrrd, .nhdr, .mha and .mhd go through SimpleITK; all else is NIfTI.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import dicom, itk, nifti
from sam2_3dmed_jax.volume.geometry import Grid, Volume, check_same_grid, to_canonical
from sam2_3dmed_jax.volume.image_file import AIR_HU, ImageFile
from sam2_3dmed_jax.volume.nifti import write_labels, write_nifti

__all__ = ["read_grid", "read_label_map", "read_labels", "read_volume", "write_labels", "write_nifti"]


def read_volume(
    path: str | os.PathLike[str], *, index: int | None = None, resample: bool = False, modality: str = "CT"
) -> Volume:
    """Reads a CT, or another modality where the file or the caller says so.

    Args:
        path: a NIfTI, NRRD or MHA file with three axes (further axes of length 1 are dropped); a folder with one
            DICOM series; or one DICOM file, which stands for its series in its folder, or for its own frames.
        index: of the volume of a 4D NIfTI, 0-based; elsewhere only 0.
        resample: put DICOM slices with gaps, uneven spacing or tilt on a regular grid, instead of an error.
        modality: DICOM's word for what a file holds whose format does not say it.

    Returns:
        The volume as float32 in canonical order; header scaling is applied. CT is in HU, and what is not finite or
        lies below -1024 (padding outside the scanner's circle) is -1024.

    Raises:
        UserError: no such file, an unknown format, damaged, not scalar, irregular, not in millimetres, too large,
            `index` out of range, or a library of the extra `[dicom]` is missing.
    """
    image = _open(path, index, resample)
    array = np.ascontiguousarray(to_canonical(image.read(np.float32), image.grid))
    modality = image.modality or modality
    floor = AIR_HU if modality == "CT" else float(np.min(array, where=np.isfinite(array), initial=0.0))
    np.nan_to_num(array, copy=False, nan=floor, posinf=floor, neginf=floor)
    np.maximum(array, np.float32(floor), out=array)
    return Volume(array, image.grid, modality)


def read_labels(path: str | os.PathLike[str], like: Volume) -> np.ndarray:
    """Reads a label map that lies on the grid of a volume.

    The axes may be stored in another order or direction than the volume's, as long as the voxels are the same.

    Args:
        path: a NIfTI, NRRD or MHA file.
        like: the volume that it labels.

    Returns:
        `[D, H, W]` int32 in canonical order.

    Raises:
        UserError: as `read_volume`; or the grids differ (in shape, or in the affine by more than a thousandth of
            the spacing); or a value is not an integer.
    """
    image = _open(path, None, False)
    check_same_grid(image.grid, like.grid)
    return _integers(path, image)


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The grid of a volume or label map, from its header.

    Raises:
        UserError: as `read_volume`.
    """
    return _open(path, None, False).grid


def read_label_map(path: str | os.PathLike[str]) -> tuple[np.ndarray, Grid]:
    """Reads a label map by itself.

    Args:
        path: a NIfTI, NRRD or MHA file.

    Returns:
        `[D, H, W]` int32 in canonical order, and its grid.

    Raises:
        UserError: as `read_labels`, but for its grid.
    """
    image = _open(path, None, False)
    return _integers(path, image), image.grid


def _integers(path: str | os.PathLike[str], image: ImageFile) -> np.ndarray:
    data = image.read(None)
    if data.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(data)
            wrong = ~(np.abs(data - rounded) <= 1e-4)  # scaled integers come back with rounding errors; NaN is wrong
        if wrong.any():
            raise UserError(
                f"{path} holds the value {data[wrong][0]:g}, expected integer labels: give a label map, or round it"
            )
        data = rounded
    limits = np.iinfo(np.int32)
    if data.min() < limits.min or data.max() > limits.max:
        raise UserError(
            f"{path} holds labels from {data.min():g} to {data.max():g}, expected 32-bit integers: renumber them"
        )
    return np.ascontiguousarray(to_canonical(data, image.grid)).astype(np.int32, copy=False)


def _open(path: str | os.PathLike[str], index: int | None, resample: bool) -> ImageFile:
    if os.path.exists(path):
        series, by_itk = dicom.is_dicom(path), Path(path).suffix.lower() in itk.SUFFIXES
        if (series or by_itk) and index not in (None, 0):
            raise UserError(f"{path} has no volume {index}, expected index 0: only a NIfTI file may hold several")
        if series:
            return dicom.open_image(path, resample)
        if by_itk:
            return itk.open_image(path)
    return nifti.open_image(path, index)
