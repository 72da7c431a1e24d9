"""DICOM series reader: `[i, j, k]` = (column, row, slice), k ascending along the slice normal.

Pixels are decoded by `dicom_pixels`. Each slice has its own slope and intercept. Colour images and several phases in
one series are not supported.
"""

from __future__ import annotations

import functools
import itertools
import os

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.dicom_file import has_preamble, is_dicom_file
from sam2_3dmed_jax.volume.dicom_frame import Frame
from sam2_3dmed_jax.volume.dicom_pixels import PixelDecoder
from sam2_3dmed_jax.volume.dicom_series import find_series
from sam2_3dmed_jax.volume.dicom_stack import Stack, resample_slices, stack_frames
from sam2_3dmed_jax.volume.formats import all_suffixes, dicom_suffixes
from sam2_3dmed_jax.volume.image_file import AIR_HU, ImageFile, check_size


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Return whether this is DICOM: a folder, or a file with DICOM's magic bytes, a DICOM suffix, or no preamble.

    A file without preamble is recognized by its first element, unless it has the suffix of another image format.
    """
    name = os.path.basename(path).lower()
    if os.path.isdir(path) or name.endswith(dicom_suffixes()) or has_preamble(path):
        return True
    return not name.endswith(all_suffixes()) and is_dicom_file(path)


def open_image(
    path: str | os.PathLike[str], index: int | None = None, resample: bool = False, skip_unreadable: bool = False
) -> ImageFile:
    """Read the headers of a series and check them before voxels are allocated.

    Args:
        path: a folder with one series, or a file of it.
        index: unused; a series has one volume.
        resample: put irregular or tilted slices on a regular grid, by linear interpolation; uncovered voxels
            are air (-1024 HU) in CT and the smallest value in other modalities.
        skip_unreadable: leave out files that cannot be read, instead of an error.

    Raises:
        UserError: as `find_series` and `stack_frames`; or the volume is too large.
    """
    series = find_series(path, skip_unreadable)
    stack = stack_frames(series.frames, str(path), resample)
    check_size(path, (len(stack.frames), *stack.frames[0].shape))
    fill = AIR_HU if series.modality == "CT" else None
    notes = (*series.notes, *((stack.gaps,) if stack.gaps else ()))
    files = tuple(dict.fromkeys(frame.path for frame in stack.frames))
    return ImageFile(stack.grid, functools.partial(_read, stack, fill), series.modality, notes, files)


def _read(stack: Stack, fill: float | None, dtype: type | None) -> np.ndarray:
    slices = np.empty((len(stack.frames), *stack.frames[0].shape), np.float32)
    numbered = sorted(enumerate(stack.frames), key=lambda item: str(item[1].path))
    with PixelDecoder() as decoder:
        for path, group in itertools.groupby(numbered, key=lambda item: item[1].path):
            numbers = list(group)
            stored = decoder.decode(path, numbers[0][1].pixels)
            for k, frame in numbers:
                slices[k] = _intensities(stored, frame)
    if stack.resampling:
        if fill is not None:
            np.maximum(slices, np.float32(fill), out=slices)  # padding would leak into its neighbours
        slices = resample_slices(slices, stack.resampling, stack.grid, float(slices.min()) if fill is None else fill)
    return slices.transpose(2, 1, 0).astype(dtype or np.float32, copy=False)


def _intensities(stored: np.ndarray, frame: Frame) -> np.ndarray:
    if frame.index >= len(stored) or stored.shape[1:] != frame.shape:
        raise UserError(
            f"{frame.path} holds pixels of shape {stored.shape}, its header promises {frame.shape}: copy it again"
        )
    return np.asarray(stored[frame.index] * frame.slope + frame.intercept)
