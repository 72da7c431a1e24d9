"""Source headers of a DICOM segmentation: only the tags that it needs, rebuilt from checked values.

highdicom copies tags of the source images into the segmentation and fails on missing or malformed ones. Here, geometry
is taken from the checked slices, identifiers must be valid, and a malformed value of a tag that may be empty is
rewritten (dates of the form 2020.01.01) or left empty, with a note. No other tag about people is copied.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.foreign_errors import foreign, quiet
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, check_outputs
from sam2_3dmed_jax.volume.dicom import is_dicom
from sam2_3dmed_jax.volume.dicom_frame import Frame, read_header, reading
from sam2_3dmed_jax.volume.dicom_series import find_series
from sam2_3dmed_jax.volume.dicom_stack import Stack, stack_frames
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.image_file import optional

# Tags that may be empty (type 2 of their modules), with their value representation.
_MAY_BE_EMPTY = {
    "PatientName": "PN",
    "PatientID": "LO",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "StudyDate": "DA",
    "StudyTime": "TM",
    "StudyID": "SH",
    "AccessionNumber": "SH",
    "ReferringPhysicianName": "PN",
    "PositionReferenceIndicator": "LO",
}
_NIFTI_INSTEAD = "write NIfTI (.nii.gz) instead"
_SEXES = ("M", "F", "O")
_LARGEST_SERIES_NUMBER = 2**31 - 1 - 1000  # DICOM's integers are 32-bit, and the segmentation's number is 1000 more
# Leading zeros are wrong, but common, and every reader accepts them; a corrected UID would name another object.
_UID = re.compile(r"(?=.{1,64}$)\d+(\.\d+)+")


@dataclass(frozen=True, eq=False)
class SegmentationSource:
    """The series that a segmentation refers to.

    Attributes:
        headers: one data set per file of the series, in the order of its slices.
        order: `[K]` int, index of the grid's slice for each frame, in the order of highdicom's pixel array.
        series_number: of the source; 0 if it has none.
        notes: what was derived or left empty, without the values, which may be personal.
    """

    headers: Sequence[Any]
    order: np.ndarray
    series_number: int
    notes: tuple[str, ...]


def source_of(path: str | os.PathLike[str], like: Volume) -> SegmentationSource:
    """Return the series that a segmentation of a volume refers to.

    Args:
        path: the segmentation to write, for messages.
        like: the volume, read from DICOM without resampling.

    Raises:
        UserError: a volume that is not from DICOM or was resampled, or a series that has changed; or as `build_source`.
    """
    return build_source(_stack_of(path, like))


@contextlib.contextmanager
def library_errors(path: str | os.PathLike[str], like: Volume) -> Iterator[None]:
    """Silence highdicom and pydicom, and turn their errors, which are of many kinds, into one sentence."""
    with foreign(
        "pydicom", lambda reason: f"{path} cannot be made from {like.grid.source} ({reason}): {_NIFTI_INSTEAD}"
    ):
        yield


def build_source(stack: Stack) -> SegmentationSource:
    """Read the headers of a regular series and rebuild them.

    Raises:
        UserError: a file cannot be read, or an identifier is malformed or differs between slices.
    """
    frames = stack.frames
    by_path = {path: list(group) for path, group in itertools.groupby(_by_path(frames), key=lambda frame: frame.path)}
    originals = {path: read_header(path) for path in by_path}
    first_path, first = next(iter(originals.items()))
    notes: list[str] = []
    with reading(first_path):
        shared = _shared_tags(originals, notes)
        height = float(np.linalg.norm(stack.grid.affine[:3, 2]))
        thickness = _thickness(first)
        if thickness is None:
            thickness = height
            notes.append(f"SliceThickness is missing: {height:.6g} mm, the distance of the slices, is used")
        headers = [
            _header(path, originals[path], group, frames[0], shared, thickness, height)
            for path, group in by_path.items()
        ]
        number = _series_number(first)
    places = {(frame.path, frame.index): k for k, frame in enumerate(frames)}
    order = [places[frame.path, frame.index] for group in by_path.values() for frame in group]
    return SegmentationSource(headers, np.array(order), number, tuple(notes))


def _stack_of(path: str | os.PathLike[str], like: Volume) -> Stack:
    """Return the slices that a segmentation would refer to, in the order of the grid's third axis.

    Raises:
        UserError: a volume that is not from DICOM or was resampled, or a series that has changed.
    """
    source = like.grid.source
    if not source or not is_dicom(source):
        raise UserError(f"{path} needs a DICOM series as its source, found {source or 'an array'}: {_NIFTI_INSTEAD}")
    # The volume was read with or without unreadable files; its grid is compared below.
    stack = stack_frames(find_series(source, skip_unreadable=True).frames, source, resample=True)
    if stack.resampling:
        raise UserError(
            f"{path} would segment {source}, whose slices were resampled to a regular grid: DICOM segmentations "
            f"refer to the slices as they are, {_NIFTI_INSTEAD}"
        )
    if stack.grid.shape != like.grid.shape or not np.allclose(stack.grid.affine, like.grid.affine, rtol=0, atol=1e-6):
        raise UserError(f"{source} has changed since it was read, or the volume was resampled: {_NIFTI_INSTEAD}")
    check_outputs([OutputFile("", path)], [Input("the image", source, lambda: [frame.path for frame in stack.frames])])
    return stack


def _by_path(frames: Sequence[Frame]) -> list[Frame]:
    """Group frames by their files in the order of the slices, and sort the frames of one file by their number."""
    position = {path: k for k, path in enumerate(dict.fromkeys(frame.path for frame in frames))}
    return sorted(frames, key=lambda frame: (position[frame.path], frame.index))


def data_set(**tags: Any) -> Any:
    """Return a data set of pydicom with these tags, which may contain sequences."""
    result = optional("pydicom", "DICOM").Dataset()
    for keyword, value in tags.items():
        setattr(result, keyword, value)
    return result


def _shared_tags(originals: dict[Path, Any], notes: list[str]) -> dict[str, Any]:
    """Return the tags that are equal in all slices."""
    first_path, first = next(iter(originals.items()))
    tags: dict[str, Any] = {}
    for keyword, vr in _MAY_BE_EMPTY.items():
        tags[keyword], well_formed = _text(first, keyword, vr)
        if not well_formed:
            notes.append(f"{keyword} is malformed and is left empty")
    series = _one_uid(originals, "SeriesInstanceUID")
    if series is None:
        raise UserError(f"{first_path} has no SeriesInstanceUID, which a segmentation refers to; write NIfTI (.nii.gz)")
    tags["SeriesInstanceUID"] = series
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        uid = _one_uid(originals, keyword)
        if uid is None:
            uid = optional("pydicom", first_path).uid.generate_uid(entropy_srcs=[keyword, series])
            notes.append(f"{keyword} is missing: one that is derived from the SeriesInstanceUID is used")
        tags[keyword] = str(uid)
    tags["Modality"], _ = _text(first, "Modality", "CS")
    if first.get("LossyImageCompression") == "01":
        names = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
        tags |= {name: first[name].value for name in names if first.get(name)}
    if not all(str(value or "").isascii() for value in tags.values()):
        tags["SpecificCharacterSet"] = "ISO_IR 192"  # UTF-8 can hold the characters of all source character sets
    return tags


def _text(header: Any, keyword: str, vr: str) -> tuple[str | None, bool]:
    """Return the text of a tag, or None, and whether it is well-formed; dates and times lose ACR-NEMA's separators."""
    try:
        found = header.get(keyword)
    except Exception:  # pydicom converts values on access, and raises many kinds of errors
        return None, False
    if not found:
        return None, True
    if isinstance(found, Sequence) and not isinstance(found, str):
        return None, False  # a backslash within one value
    text = str(found).strip()
    if vr == "DA":
        text = re.sub(r"^(\d{4})([.-])(\d\d)\2(\d\d)$", r"\1\3\4", text)
    elif vr == "TM":
        text = re.sub(r"^(\d\d):(\d\d)(?::(\d\d(?:\.\d{1,6})?))?$", r"\1\2\3", text)
    return (text, True) if _is_well_formed(text, keyword, vr) else (None, False)


def _is_well_formed(text: str, keyword: str, vr: str) -> bool:
    valuerep = optional("pydicom", keyword).valuerep
    try:
        valuerep.validate_value(vr, text, 2)  # 2: raise
        if vr in ("DA", "TM"):
            {"DA": valuerep.DA, "TM": valuerep.TM}[vr](text)
    except (ValueError, TypeError, OverflowError):
        return False
    printable = text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text
    return printable and (keyword != "PatientSex" or text in _SEXES)


def _one_uid(originals: dict[Path, Any], keyword: str) -> str | None:
    """Return the UID that all files share; None if none has it.

    Raises:
        UserError: it is malformed, or differs between the files.
    """
    found = {_uid(path, header, keyword): path for path, header in originals.items() if header.get(keyword)}
    if len(found) > 1:
        places = " and ".join(path.name for path in list(found.values())[:2])
        raise UserError(
            f"{next(iter(originals)).parent} has {len(found)} different values of {keyword} ({places}), which one "
            "segmentation cannot refer to: write NIfTI (.nii.gz)"
        )
    return next(iter(found), None)


def _uid(path: Path, header: Any, keyword: str) -> str:
    value = header.get(keyword) or getattr(header.file_meta, f"MediaStorage{keyword}", None) or ""
    if not isinstance(value, str) or not _UID.fullmatch(value):
        raise UserError(
            f"{path} has the {keyword} {str(value)[:64]!r}, which is not a UID of numbers and dots: correct it, or "
            "write NIfTI (.nii.gz)"
        )
    return str(value)


def _thickness(header: Any) -> float | None:
    """Return a valid SliceThickness in mm, or None."""
    for place in _measures(header):
        try:
            thickness = float(place.get("SliceThickness"))
        except Exception:  # missing, empty, several values, or text
            continue
        if math.isfinite(thickness) and thickness > 0:
            return thickness
    return None


def _measures(header: Any) -> Iterable[Any]:
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in (header.get(name) or ())[:1]:
            yield from (group.get("PixelMeasuresSequence") or ())[:1]
    yield header


def _series_number(header: Any) -> int:
    try:
        number = int(header.get("SeriesNumber") or 0)
    except Exception:  # not a number, or several
        return 0
    return number if 0 <= number <= _LARGEST_SERIES_NUMBER else 0


def _header(
    path: Path,
    original: Any,
    frames: Sequence[Frame],
    first: Frame,
    shared: dict[str, Any],
    thickness: float,
    height: float,
) -> Any:
    """Return the data set of one file.

    Args:
        path: the file.
        original: its header.
        frames: its frames, by their number.
        first: the first frame of the series, whose orientation and spacing all frames share.
        shared: tags that are equal in all files.
        thickness: of a slice, mm.
        height: mm between slices.
    """
    pydicom = optional("pydicom", path)

    def decimals(values: Sequence[float] | np.ndarray) -> list[Any]:
        return [pydicom.valuerep.DS(float(value), auto_format=True) for value in values]

    (each_thickness, each_height), spacing = decimals([thickness, height]), decimals(first.spacing)
    measures = {"PixelSpacing": spacing, "SliceThickness": each_thickness, "SpacingBetweenSlices": each_height}
    axes = {"ImageOrientationPatient": decimals(first.axes.ravel())}
    positions = [{"ImagePositionPatient": decimals(frame.position)} for frame in frames]
    tags: dict[str, Any] = {
        "SOPClassUID": _uid(path, original, "SOPClassUID"),
        "SOPInstanceUID": _uid(path, original, "SOPInstanceUID"),
        "Rows": first.shape[0],
        "Columns": first.shape[1],
    }
    if original.get("PerFrameFunctionalGroupsSequence"):
        tags["NumberOfFrames"] = len(frames)
        tags["SharedFunctionalGroupsSequence"] = [
            data_set(PixelMeasuresSequence=[data_set(**measures)], PlaneOrientationSequence=[data_set(**axes)])
        ]
        tags["PerFrameFunctionalGroupsSequence"] = [
            data_set(PlanePositionSequence=[data_set(**position)]) for position in positions
        ]
    else:
        tags |= measures | axes | positions[0]
    with quiet("pydicom"):
        return data_set(**tags, **shared)
