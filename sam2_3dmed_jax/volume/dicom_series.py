"""Selection of the files of a folder that are the slices of one DICOM series.

Files that are not DICOM images (DICOMDIR, reports, segmentations, text), localizers, and derived images without a
position are skipped. A file that looks like a slice and lacks a tag is an error, so that no slice is missed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.dicom_frame import Frame, frame_count, frames_in, read_header, reading, text_of
from sam2_3dmed_jax.volume.formats import dicom_suffixes


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series, unordered.

    Attributes:
        frames: one or more.
        modality: DICOM's Modality.
    """

    frames: tuple[Frame, ...]
    modality: str


def has_dicom_magic(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has DICOM's magic bytes, DICM after 128 bytes."""
    try:
        with open(path, "rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def find_series(path: str | os.PathLike[str]) -> Series:
    """Read the headers of one series.

    Args:
        path: a folder that contains one series, or one file of it, which selects all files of its series in that
            folder. A multi-frame file is a series of its own.

    Raises:
        UserError: no images, several series, a damaged file, or a missing or invalid tag.
    """
    place = Path(path)
    if place.is_dir():
        headers = {file: header for file in _candidates(place) if _is_slice(file, header := read_header(file))}
        if not headers:
            raise UserError(f"{path} holds no DICOM slices with a position, expected a series: give the series' folder")
        _check_one_series(place, headers)
    else:
        if not has_dicom_magic(place):
            raise UserError(
                f"{path} is not a DICOM file (no DICM after 128 bytes): give a file of the series, or its folder"
            )
        chosen = read_header(place)
        if not _is_slice(place, chosen):
            raise UserError(
                f"{path} is a {_sop_class(chosen)} or localizer without slices in space, expected a slice of a series: "
                "give a file of the series, or its folder"
            )
        headers = {place: chosen}
        if frame_count(chosen) == 1:
            uid = text_of(chosen, "SeriesInstanceUID", place)
            others = ((file, read_header(file)) for file in _candidates(place.parent) if not file.samefile(place))
            headers |= {
                file: header
                for file, header in others
                if _is_slice(file, header) and text_of(header, "SeriesInstanceUID", file) == uid
            }
    first, header = next(iter(headers.items()))
    frames = tuple(frame for file, each in headers.items() for frame in frames_in(file, each))
    return Series(frames, text_of(header, "Modality", first))


def _candidates(folder: Path) -> list[Path]:
    """List the DICOM files of a folder by name; a damaged file with a DICOM suffix is an error, not a missing slice."""
    files = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        if has_dicom_magic(file):
            files.append(file)
        elif file.suffix.lower() in dicom_suffixes():
            raise UserError(f"{file} is not a DICOM file (no DICM after 128 bytes): copy it again, or remove it")
    return files


def _sop_class(header: Any) -> str:
    """Return the name of the object's class; private classes are named by their number."""
    uid = getattr(header.file_meta, "MediaStorageSOPClassUID", None) or header.get("SOPClassUID")
    return getattr(uid, "name", None) or "CT Image Storage"  # damaged: the check of missing tags reports it


def _is_slice(path: Path, header: Any) -> bool:
    """Return whether an image may be part of a volume, from few tags, so that a damaged slice is not skipped."""
    with reading(path):
        name = _sop_class(header)
        private = name[0].isdigit() and (
            "Rows" in header or "SOPClassUID" not in header
        )  # or truncated within its number
        if "Image Storage" not in name and not private:
            return False
        if "Rows" not in header:
            raise UserError(f"{path} has no Rows, expected them in every image: it is truncated, copy it again")
        kind = [str(word) for word in header.get("ImageType") or ()]
        placed = "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header
        return "LOCALIZER" not in kind and (placed or not ("Secondary Capture" in name or "DERIVED" in kind))


def _check_one_series(folder: Path, headers: dict[Path, Any]) -> None:
    series: dict[str, list[Any]] = {}
    for file, header in headers.items():
        series.setdefault(text_of(header, "SeriesInstanceUID", file), []).append(header)
    if len(series) > 1:
        with reading(folder):
            listed = "; ".join(
                f"{uid} ({' '.join(str(found[0].get('SeriesDescription') or 'no description').split())}, "
                f"{sum(frame_count(header) for header in found)} slices)"
                for uid, found in series.items()
            )
        raise UserError(
            f"{folder} holds {len(series)} series, expected one: {listed}: give a folder with one, or a file of it"
        )
