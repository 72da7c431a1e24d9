"""DICOM image headers: position, orientation and value scaling of each slice.

Single-frame and enhanced multi-frame objects give the same `Frame`s (PS3.3, C.7.6.2 and C.7.6.16).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.foreign_errors import foreign, quiet
from sam2_3dmed_jax.volume.dicom_deflate import is_deflated, read_deflated
from sam2_3dmed_jax.volume.dicom_file import has_preamble, is_dicom_file, measure_pixels
from sam2_3dmed_jax.volume.image_file import check_promise, optional

_LARGEST_MM = 1e6  # of positions and distances; a scanner's space is a few metres
_PACKBITS_LIMIT = 64  # largest ratio that DICOM's RLE can reach


@dataclass(frozen=True)
class PixelCoding:
    """How the pixels of a file are stored.

    Attributes:
        compressed: they are encapsulated, so that a decoder has to run.
        size: bytes of all decoded pixels, as the header states it.
        syntax: name of the transfer syntax.
    """

    compressed: bool
    size: int
    syntax: str


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice as its header describes it.

    Attributes:
        path: the file that contains it.
        index: its number within the file, 0-based.
        uid: SOPInstanceUID of the file.
        position: `[3]` float64, LPS mm of the first pixel's centre.
        axes: `[2, 3]` float64, LPS unit vectors: along a row (columns grow), and down a column (rows grow).
        spacing: mm between rows and mm between columns.
        shape: (rows, columns).
        slope: factor of the stored values.
        intercept: added after the slope.
        thickness: mm between slices by SpacingBetweenSlices, else SliceThickness; for a series of one slice only.
        pixels: the coding of all pixels of the file.
    """

    path: Path
    index: int
    uid: str
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float
    thickness: float | None
    pixels: PixelCoding


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Wrap every use of pydicom, which parses elements on access and raises many kinds of errors.

    Raises:
        UserError: the file is damaged.
    """
    with foreign("pydicom", lambda reason: f"{path} is damaged DICOM ({reason}): copy or export it again"):
        yield


def read_header(path: Path, pixels: bool = False) -> Any:
    """Read a file as a pydicom data set, by default without its pixels.

    A file without preamble is read too; its transfer syntax is the one that its first elements show. Without pixels,
    the attribute `pixel_extent` is the `PixelExtent`, or None if the whole data set is deflated.

    Raises:
        UserError: pydicom is missing, the file is not DICOM, or pydicom cannot parse it.
    """
    pydicom = optional("pydicom", path)
    if not is_dicom_file(path):
        raise UserError(f"{path} is not a DICOM file ({_reason(path)}): copy it again, or remove it")
    with reading(path), open(path, "rb") as file:
        header = read_deflated(path, file, pixels)
        if header is None:
            file.seek(0)
            header = pydicom.dcmread(file, stop_before_pixels=not pixels, force=True)
        if not has_preamble(path) and not (_declared_class(header) or header.get("SOPClassUID")):
            raise UserError(
                f"{path} has no preamble and no SOPClassUID, expected a slice: it may be truncated, copy it again"
            )
        syntax = header.file_meta.get("TransferSyntaxUID")
        extent = None
        if not pixels and not is_deflated(header):
            extent = measure_pixels(file, *header.original_encoding)
        if not syntax:
            if extent and extent.encapsulated:
                raise UserError(f"{path} has compressed pixels and no TransferSyntaxUID, expected one: export it again")
            header.file_meta.TransferSyntaxUID = _syntax_of(pydicom, *header.original_encoding)
        header.pixel_extent = extent
        return header


def _reason(path: Path) -> str:
    """Return why a file is not DICOM."""
    try:
        with open(path, "rb") as file:
            return "no DICM after 128 bytes" if file.read(1) else "it is empty"
    except OSError as error:
        return str(error.strerror)


def _declared_class(header: Any) -> Any:
    """Return the SOP class in the file's meta information, or None."""
    return header.file_meta.get("MediaStorageSOPClassUID")


def _syntax_of(pydicom: Any, implicit: bool, little: bool) -> Any:
    """Return the uncompressed transfer syntax with an encoding."""
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian


def frame_count(header: Any) -> int:
    """Return NumberOfFrames, or 1 if it is absent or invalid."""
    try:
        with quiet("pydicom"):
            return max(int(header.get("NumberOfFrames") or 1), 1)
    except Exception:  # pydicom parses elements on access and raises errors of many kinds
        return 1


def pixel_coding(path: Path, header: Any) -> PixelCoding:
    """Return how the pixels of a file are stored.

    Args:
        path: for error messages.
        header: from `read_header`, without pixels.

    Raises:
        UserError: a tag is missing or invalid.
    """
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax:
        raise UserError(f"{path} has the TransferSyntaxUID {str(syntax)[:64]!r}, which is unknown: export it again")
    rows, columns, bits = (int(_numbers([header], name, 1, path)[0]) for name in ("Rows", "Columns", "BitsAllocated"))
    extent = header.pixel_extent
    compressed = syntax.is_encapsulated or (extent is not None and extent.encapsulated)
    return PixelCoding(compressed, rows * columns * frame_count(header) * max(bits, 8) // 8, str(syntax.name)[:80])


def text_of(header: Any, keyword: str, path: Path) -> str:
    """Return a tag's value as text.

    Raises:
        UserError: it is missing or empty.
    """
    with reading(path):
        value = header.get(keyword)
    if not value:
        raise UserError(f"{path} has no {keyword}, expected one in every image: it may be truncated, copy it again")
    return str(value)


def frames_in(path: Path, header: Any) -> list[Frame]:
    """Return the slices of one file.

    Args:
        path: for error messages.
        header: from `read_header`.

    Raises:
        UserError: a tag is missing or invalid, or the file is too short for its pixels.
    """
    with reading(path):
        return _frames(path, header)


def _frames(path: Path, header: Any) -> list[Frame]:
    count = frame_count(header)
    groups: Sequence[Any] = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared: Sequence[Any] = header.get("SharedFunctionalGroupsSequence") or ()
    if len(groups) != count and (groups or count > 1):
        raise UserError(
            f"{path} has {count} frames and {len(groups)} items in PerFrameFunctionalGroupsSequence, expected one "
            "each: export it again"
        )
    shape = (int(_numbers([header], "Rows", 1, path)[0]), int(_numbers([header], "Columns", 1, path)[0]))
    colours = header.get("PhotometricInterpretation", "MONOCHROME2")
    if not str(colours).startswith("MONOCHROME"):
        raise UserError(f"{path} has PhotometricInterpretation {colours}, expected MONOCHROME2: give the series itself")
    coding = pixel_coding(path, header)
    _check_length(path, header, shape, count)
    return [
        _frame(path, header, index, shape, [*groups[index : index + 1], *shared[:1]], coding) for index in range(count)
    ]


def _frame(
    path: Path, header: Any, index: int, shape: tuple[int, int], groups: Sequence[Any], coding: PixelCoding
) -> Frame:
    def macro(name: str) -> list[Any]:
        """List the places of a tag: the frame's functional group, the shared group, the header."""
        return [*(group[name][0] for group in groups if group.get(name)), header]

    axes = _numbers(macro("PlaneOrientationSequence"), "ImageOrientationPatient", 6, path).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
        raise UserError(f"{path} has ImageOrientationPatient {axes.ravel().tolist()}, expected two unit vectors at 90°")
    measures = macro("PixelMeasuresSequence")
    rows, columns = _numbers(measures, "PixelSpacing", 2, path).tolist()
    if min(rows, columns) <= 0 or max(rows, columns) > _LARGEST_MM:
        raise UserError(f"{path} has PixelSpacing {[rows, columns]}, expected positive millimetres: export it again")
    position = _numbers(macro("PlanePositionSequence"), "ImagePositionPatient", 3, path)
    if np.abs(position).max() > _LARGEST_MM:
        raise UserError(
            f"{path} has ImagePositionPatient {position.tolist()}, expected at most {_LARGEST_MM:g} mm: "
            "correct it, or export it again"
        )
    thickness = next(
        (
            abs(float(_numbers(measures, name, 1, path)[0]))
            for name in ("SpacingBetweenSlices", "SliceThickness")
            if any(where.get(name) for where in measures)
        ),
        None,
    )
    slope, intercept = _rescale(macro("PixelValueTransformationSequence"), header, path)
    return Frame(
        path=path,
        index=index,
        uid=text_of(header, "SOPInstanceUID", path),
        position=position,
        axes=axes / np.linalg.norm(axes, axis=1, keepdims=True),
        spacing=(rows, columns),
        shape=shape,
        slope=slope,
        intercept=intercept,
        thickness=thickness,
        pixels=coding,
    )


def _rescale(places: Sequence[Any], header: Any, path: Path) -> tuple[float, float]:
    """Return slope and intercept; if both are absent, signed values are HU already."""
    present = [any(where.get(name) is not None for where in places) for name in ("RescaleSlope", "RescaleIntercept")]
    signed = header.get("PixelRepresentation") == 1
    if not any(present) and (signed or header.get("Modality") != "CT"):
        return 1.0, 0.0
    slope, intercept = (float(_numbers(places, f"Rescale{name}", 1, path)[0]) for name in ("Slope", "Intercept"))
    if slope == 0:
        raise UserError(f"{path} has RescaleSlope 0, expected another number: export it again")
    return slope, intercept


def _check_length(path: Path, header: Any, shape: tuple[int, int], count: int) -> None:
    """Compare the pixels that the header promises with those in the file; a decoder checks the size of a JPEG."""
    bits = int(_numbers([header], "BitsAllocated", 1, path)[0])
    syntax, extent = header.file_meta.TransferSyntaxUID, header.pixel_extent
    if extent is None:
        return  # a deflated file that is cut cannot be inflated
    promised = shape[0] * shape[1] * count * bits // 8
    if not extent.encapsulated:
        check_promise(path, promised, extent.size)
    elif not extent.whole:
        raise UserError(f"{path} is truncated: it ends within its compressed pixels: copy or download it again")
    elif "RLE" in syntax.name:
        check_promise(path, promised, extent.size * _PACKBITS_LIMIT)


def _numbers(places: Sequence[Any], keyword: str, count: int, path: Path) -> np.ndarray:
    """Return `[count]` float64 from the first data set that has the tag."""
    found = None
    try:
        found = next((where[keyword].value for where in places if where.get(keyword) is not None), None)
        numbers = np.atleast_1d(np.asarray(found, dtype=np.float64))
    except (TypeError, ValueError, ArithmeticError):
        numbers = np.empty(0)
    if found is None:
        raise UserError(f"{path} has no {keyword}, expected {count} numbers: it may be truncated, or is not a slice")
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UserError(f"{path} has {keyword} {str(found)[:80]!r}, expected {count} numbers: export it again")
    return numbers
