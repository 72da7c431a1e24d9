"""Stored values of the pixels of a DICOM file.

pydicom decodes the syntaxes it knows; SimpleITK decodes the rest (JPEG 2000, JPEG lossless). Decoders of compressed
syntaxes are native libraries, which damaged files can crash: they run in a child process with limits of memory and
time.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.foreign_errors import foreign
from sam2_3dmed_jax.runtime.guarded_process import ChildError, GuardedProcess
from sam2_3dmed_jax.volume.dicom_bits import signed_stream_precision, stored_values
from sam2_3dmed_jax.volume.dicom_frame import PixelCoding, read_header, reading
from sam2_3dmed_jax.volume.image_file import optional

# Tags that describe the stored pixels. ITK decodes a copy with these tags alone without rescaling the values.
_PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames", "PixelData"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SOPInstanceUID"),
)
_MULTI_FRAME_GREY = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture Image Storage
# Limits of the child for one file: in addition to multiples of the size of its decoded pixels and of the file itself.
_MEMORY = 2**29  # bytes
_SECONDS, _BYTES_PER_SECOND = 60.0, 2**20


class PixelDecoder:
    """Decodes the files of a series, compressed ones in one child process; a context manager."""

    def __init__(self) -> None:
        """The child starts with the first compressed file."""
        self._child = GuardedProcess(f"{__name__}:decode_here")

    def __enter__(self) -> PixelDecoder:
        """Return the decoder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the child."""
        self._child.__exit__(kind, error, traceback)

    def decode(self, path: Path, coding: PixelCoding) -> np.ndarray:
        """Return the stored values `[frames, rows, columns]` of a file.

        Args:
            path: the file.
            coding: of its pixels, from its header.

        Raises:
            UserError: the pixels are damaged, or their decoder crashes or exceeds its limits.
        """
        if not coding.compressed:
            return decode_here(path)
        memory = _MEMORY + 8 * coding.size + 2 * path.stat().st_size
        seconds = _SECONDS + coding.size / _BYTES_PER_SECOND
        try:
            # Some decoders return wider integers.
            return self._child.call([str(path)], 8 * coding.size, memory, seconds)
        except ChildError as error:
            raise UserError(
                f"{path} has pixels in {coding.syntax} whose decoder failed ({error}): copy it again, or export it "
                "uncompressed"
            ) from None


def decode_here(path: str | Path) -> np.ndarray:
    """Return the stored values `[frames, rows, columns]` of a file; native decoders run in this process.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(path)
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
        syntax = header.file_meta.TransferSyntaxUID.name
        with foreign(
            "SimpleITK",
            lambda reason: (
                f"{path} has pixels in {syntax} that cannot be decoded ({reason}): copy it again, or export it "
                "uncompressed"
            ),
        ):
            bare.save_as(Path(folder) / "pixels.dcm", enforce_file_format=True)
            image = sitk.ReadImage(str(Path(folder) / "pixels.dcm"))
    return np.asarray(sitk.GetArrayFromImage(image))
