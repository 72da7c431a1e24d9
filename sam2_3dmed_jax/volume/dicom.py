"""DICOM series in: `[i, j, k]` = (column, row, slice), k ascending along the slice normal.

pydicom decodes what it can, as stored; the rest (JPEG 2000, JPEG lossless) goes through SimpleITK. Slope and intercept
are each slice's own. Not read: colour, several phases in one series.
"""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.dicom_frame import Frame, read_header, reading
from sam2_3dmed_jax.volume.dicom_series import DICOM_SUFFIXES, find_series, has_dicom_magic
from sam2_3dmed_jax.volume.dicom_stack import Stack, resample_slices, stack_frames
from sam2_3dmed_jax.volume.image_file import AIR_HU, ImageFile, check_size, one_line, optional

# The tags that tell how pixels are stored; a copy of these alone decodes without being rescaled by ITK.
_PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames", "PixelData"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SOPInstanceUID"),
)
_MULTI_FRAME_GREY = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture Image Storage


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether `open_image` is the one to read this: a folder, a file with DICOM's mark, or one named as DICOM is."""
    return os.path.isdir(path) or Path(path).suffix.lower() in DICOM_SUFFIXES or has_dicom_magic(path)


def open_image(path: str | os.PathLike[str], resample: bool = False) -> ImageFile:
    """Reads the headers of a series, and checks them before voxels are allocated.

    Args:
        path: a folder with one series, or a file of it.
        resample: put irregular or tilted slices on a regular grid, by linear interpolation; CT is air (-1024 HU)
            where no slice is, other modalities have their smallest value.

    Raises:
        UserError: as `find_series` and `stack_frames`; or the volume is too large.
    """
    series = find_series(path)
    stack = stack_frames(series.frames, str(path), resample)
    check_size(path, stack.grid.shape)
    check_size(path, (len(stack.frames), *stack.frames[0].shape))
    fill = AIR_HU if series.modality == "CT" else None
    return ImageFile(stack.grid, functools.partial(_read, stack, fill), series.modality)


def _read(stack: Stack, fill: float | None, dtype: type | None) -> np.ndarray:
    slices = np.empty((len(stack.frames), *stack.frames[0].shape), np.float32)
    numbered = sorted(enumerate(stack.frames), key=lambda item: str(item[1].path))
    for path, group in itertools.groupby(numbered, key=lambda item: item[1].path):
        stored = _decode(path)
        for k, frame in group:
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
    return stored[frame.index] * frame.slope + frame.intercept


def _decode(path: Path) -> np.ndarray:
    """`[frames, rows, columns]`, as stored."""
    header = read_header(path, pixels=True)
    try:
        with reading(path):
            pixels = np.asarray(header.pixel_array)
    except UserError:
        syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
        if "PixelData" not in header or syntax is None or not syntax.is_encapsulated:
            raise
        with reading(path):
            pixels = _decode_by_itk(path, header)
    return pixels if pixels.ndim == 3 else pixels[None]


def _decode_by_itk(path: Path, header: Any) -> np.ndarray:
    sitk, pydicom = optional("SimpleITK", path), optional("pydicom", path)
    bare = pydicom.Dataset()
    for keyword in _PIXEL_TAGS:
        if keyword in header:
            bare[keyword] = header[keyword]
    bare.SOPClassUID = _MULTI_FRAME_GREY
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            bare.save_as(Path(folder) / "pixels.dcm", enforce_file_format=True)
            image = sitk.ReadImage(str(Path(folder) / "pixels.dcm"))
        except Exception as error:
            raise UserError(
                f"{path} has pixels in {header.file_meta.TransferSyntaxUID.name} that cannot be decoded "
                f"({one_line(error)}): copy it again, or export it uncompressed"
            ) from None
    return np.asarray(sitk.GetArrayFromImage(image))
