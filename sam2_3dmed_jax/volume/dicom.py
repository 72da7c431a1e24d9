"""DICOM series reader: `[i, j, k]` = (column, row, slice), k ascending along the slice normal.

pydicom decodes the syntaxes it knows; SimpleITK decodes the rest (JPEG 2000, JPEG lossless). Each slice has its own
slope and intercept. Colour images and several phases in one series are not supported.
"""

from __future__ import annotations

import copy
import functools
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.dicom_bits import signed_stream_precision, stored_values
from sam2_3dmed_jax.volume.dicom_file import has_preamble, is_dicom_file
from sam2_3dmed_jax.volume.dicom_frame import Frame, read_header, reading
from sam2_3dmed_jax.volume.dicom_series import find_series
from sam2_3dmed_jax.volume.dicom_stack import Stack, resample_slices, stack_frames
from sam2_3dmed_jax.volume.formats import all_suffixes, dicom_suffixes
from sam2_3dmed_jax.volume.image_file import AIR_HU, ImageFile, check_size, one_line, optional

# Tags that describe the stored pixels. ITK decodes a copy with these tags alone without rescaling the values.
_PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames", "PixelData"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SOPInstanceUID"),
)
_MULTI_FRAME_GREY = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture Image Storage


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
    check_size(path, stack.grid.shape)
    check_size(path, (len(stack.frames), *stack.frames[0].shape))
    fill = AIR_HU if series.modality == "CT" else None
    notes = (*series.notes, *((stack.gaps,) if stack.gaps else ()))
    return ImageFile(stack.grid, functools.partial(_read, stack, fill), series.modality, notes)


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
    return np.asarray(stored[frame.index] * frame.slope + frame.intercept)


def _decode(path: Path) -> np.ndarray:
    """Return the stored values `[frames, rows, columns]`."""
    header = read_header(path, pixels=True)
    try:
        with reading(path):
            pixels = _decode_by_pydicom(header)
    except UserError:
        syntax = header.file_meta.TransferSyntaxUID
        if "PixelData" not in header or not syntax.is_encapsulated or _is_complete(path, syntax):
            raise
        with reading(path):
            pixels = _decode_by_itk(path, header)
    with reading(path):
        values = stored_values(pixels, header, path)
    return values if values.ndim == 3 else values[None]


def _is_complete(path: Path, syntax: Any) -> bool:
    """Return whether a decoder is installed that knows all of a codec; ITK may read what it refuses as damaged."""
    decoder = optional("pydicom.pixels", path).get_decoder(syntax)
    return bool(set(decoder.available_plugins) - {"pillow"})  # Pillow reads JPEG of 8 bits and JPEG 2000 of 16 bits


def _decode_by_pydicom(header: Any) -> np.ndarray:
    options: dict[str, Any] = {"correct_unused_bits": False}  # `stored_values` does it, for all decoders
    precision = signed_stream_precision(header) if header.get("PixelRepresentation") == 0 else None
    if precision:
        options["pixel_representation"] = 1  # pydicom shifts the values by half of the range otherwise
    header.pixel_array_options(**options)
    pixels = np.asarray(header.pixel_array)
    return pixels.view(f"u{pixels.dtype.itemsize}") & ((1 << precision) - 1) if precision else pixels


def _decode_by_itk(path: Path, header: Any) -> np.ndarray:
    sitk, pydicom = optional("SimpleITK", path), optional("pydicom", path)
    bare = pydicom.Dataset()
    for keyword in _PIXEL_TAGS:
        if keyword in header:
            bare[keyword] = copy.copy(header[keyword])
    if bare.get("HighBit", 0) + 1 != bare.get("BitsStored", 1):
        # ITK would shift the values itself, and drop the bits that show whether HighBit is right.
        bare.BitsStored, bare.HighBit = bare.BitsAllocated, bare.BitsAllocated - 1
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
