"""Reading and writing of images and label maps in all file formats.

The formats are listed in `formats.FORMATS`. A folder or DICOM file is a DICOM series; other
suffixes are read as NIfTI.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import formats
from sam2_3dmed_jax.volume.geometry import Grid, Volume, check_same_grid, to_canonical
from sam2_3dmed_jax.volume.image_file import AIR_HU, ImageFile
from sam2_3dmed_jax.volume.nifti import write_labels, write_nifti

if TYPE_CHECKING:
    from sam2_3dmed_jax.volume.dicom_frame import Frame

__all__ = [
    "read_grid",
    "read_label_map",
    "read_labels",
    "read_volume",
    "write_labels",
    "write_nifti",
    "write_segmentation",
]


def read_volume(
    path: str | os.PathLike[str], *, index: int | None = None, resample: bool = False, modality: str = "CT"
) -> Volume:
    """Read a CT, or another modality if the file or the caller declares one.

    Args:
        path: a NIfTI, NRRD or MHA file with three axes (further axes of length 1 are dropped); a folder with one
            DICOM series; or one DICOM file, which selects its series in its folder, or its own frames.
        index: volume of a 4D NIfTI, 0-based; other formats accept only 0.
        resample: put DICOM slices with gaps, uneven spacing or tilt on a regular grid, instead of an error.
        modality: DICOM's Modality, for files whose format does not store it.

    Returns:
        The volume as float32 in canonical order; header scaling is applied. CT is in HU; values that are not finite or
        are below -1024 (padding outside the scanner's circle) become -1024.

    Raises:
        UserError: the file is missing, of an unknown format, damaged, not scalar, irregular, not in millimetres or too
            large, `index` is out of range, or a library of the extra `[dicom]` is missing.
    """
    image = _open(path, index, resample)
    array = np.ascontiguousarray(to_canonical(image.read(np.float32), image.grid))
    modality = image.modality or modality
    floor = AIR_HU if modality == "CT" else float(np.min(array, where=np.isfinite(array), initial=0.0))
    np.nan_to_num(array, copy=False, nan=floor, posinf=floor, neginf=floor)
    np.maximum(array, np.float32(floor), out=array)
    return Volume(array, image.grid, modality)


def read_labels(path: str | os.PathLike[str], like: Volume) -> np.ndarray:
    """Read a label map on the grid of a volume.

    The axes may be stored in another order or direction than in the volume's file if the voxels are the same.

    Args:
        path: a NIfTI, NRRD or MHA file.
        like: the labelled volume.

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
    """Return the grid of a volume or label map, from its header.

    Raises:
        UserError: as `read_volume`.
    """
    return _open(path, None, False).grid


def read_label_map(path: str | os.PathLike[str]) -> tuple[np.ndarray, Grid]:
    """Read a label map without comparing its grid with an image.

    Args:
        path: a NIfTI, NRRD or MHA file.

    Returns:
        `[D, H, W]` int32 in canonical order, and its grid.

    Raises:
        UserError: as `read_labels`, without the comparison of grids.
    """
    image = _open(path, None, False)
    return _integers(path, image), image.grid


def write_segmentation(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    like: Volume,
    names: Mapping[int, str],
    frames: Sequence[Frame] | None = None,
) -> None:
    """Write a label map in the format of the file's suffix; the file is complete, or it does not exist.

    Args:
        path: a file with one of `formats.segmentation_suffixes()`.
        labels: `[D, H, W]` integers or bools.
        like: the labelled volume.
        names: name of each label, for formats that store names.
        frames: headers of the DICOM series that the volume was read from, for DICOM; None: they are read again.

    Raises:
        UserError: another suffix, labels that the format cannot store, or the file cannot be written.
    """
    name = os.path.basename(path)
    writable = (entry for entry in formats.FORMATS if entry.writer and formats.suffix_of(name, entry.suffixes))
    next(writable, formats.FORMATS[0]).write_segmentation(path, labels, like, names, frames)


def _integers(path: str | os.PathLike[str], image: ImageFile) -> np.ndarray:
    data = image.read(None)
    if data.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(data)
            wrong = ~(np.abs(data - rounded) <= 1e-4)  # scaled integers have rounding errors; NaN is wrong
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
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist: give the path of a NIfTI file (.nii, .nii.gz, .hdr)")
    file_format = formats.format_of(path)
    if index not in (None, 0) and not file_format.several_volumes:
        raise UserError(f"{path} has no volume {index}, expected index 0: only a NIfTI file may hold several")
    return file_format.open_image(path, index, resample)
