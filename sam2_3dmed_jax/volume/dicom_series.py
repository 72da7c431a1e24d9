"""Selection of the files of a folder that are the slices of one DICOM series, and the check that none is missing.

Other DICOM objects (reports, segmentations, localizers, derived images without a position) are left out and listed.
Other files are left out only if their names show that they are not slices; a file that may be a damaged slice is an
error, so that no slice is missed.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError, listed, number_of
from sam2_3dmed_jax.volume.dicom_deflate import NO_CHECKSUM, is_deflated
from sam2_3dmed_jax.volume.dicom_file import is_companion, is_dicom_file
from sam2_3dmed_jax.volume.dicom_frame import Frame, frame_count, frames_in, read_header, reading, text_of
from sam2_3dmed_jax.volume.image_file import optional

# Tags that count the slices or files of a group, with the tag that distinguishes the groups.
_COUNTS = (
    ("ImagesInAcquisition", "AcquisitionNumber", True),
    ("NumberOfSlices", "SeriesInstanceUID", True),
    ("InConcatenationTotalNumber", "ConcatenationUID", False),
)
_DIRECTORY = "Media Storage Directory Storage"  # the class of a DICOMDIR


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series, unordered.

    Attributes:
        frames: one or more.
        modality: DICOM's Modality.
        notes: what was left out, and signs that slices are missing.
    """

    frames: tuple[Frame, ...]
    modality: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Files:
    """The files of a folder.

    Attributes:
        slices: headers of the images that may be part of a volume.
        others: headers of the other DICOM objects.
        unreadable: why a file cannot be read, for each file that may be a damaged slice.
    """

    slices: dict[Path, Any] = field(default_factory=dict)
    others: dict[Path, Any] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)


def find_series(path: str | os.PathLike[str], skip_unreadable: bool = False) -> Series:
    """Read the headers of one series.

    Args:
        path: a folder that contains one series, or one file of it, which selects all files of its series in that
            folder. A multi-frame file is a series of its own.
        skip_unreadable: leave out files that cannot be read, and list them in the notes, instead of an error.

    Raises:
        UserError: no images, several series, a damaged file, or a missing or invalid tag.
    """
    place = Path(path)
    optional("pydicom", place)
    if place.is_dir():
        files = _read_folder(place)
        if not files.slices:
            _refuse_without_slices(place, files.unreadable)
        _refuse_unreadable(files.unreadable, skip_unreadable)
        _check_one_series(place, files.slices)
    else:
        files = _files_of_series(place)
        _refuse_unreadable(files.unreadable, skip_unreadable)
    frames: list[Frame] = []
    for file, header in list(files.slices.items()):
        try:
            frames += frames_in(file, header)
        except UserError as error:
            files.unreadable[file] = str(error)
            del files.slices[file]
            if file == place:
                raise
    if not frames:
        raise UserError(next(iter(files.unreadable.values())))
    _refuse_unreadable(files.unreadable, skip_unreadable)
    first, header = next(iter(files.slices.items()))
    with reading(place):
        notes = tuple(_notes(place, files))
    return Series(tuple(frames), text_of(header, "Modality", first), notes)


def _files_of_series(place: Path) -> _Files:
    """Return the files of the series that one of them selects; the selected file is the first slice."""
    chosen = read_header(place)
    if not _is_slice(place, chosen):
        raise UserError(
            f"{place} is a {_sop_class(chosen)} or localizer without slices in space, expected a slice of a series: "
            "give a file of the series, or its folder"
        )
    if frame_count(chosen) > 1:
        return _Files({place: chosen})
    uid = text_of(chosen, "SeriesInstanceUID", place)
    found = _read_folder(place.parent)

    def of_series(headers: dict[Path, Any]) -> dict[Path, Any]:
        return {file: each for file, each in headers.items() if str(each.get("SeriesInstanceUID")) == uid}

    for file, header in found.slices.items():
        text_of(header, "SeriesInstanceUID", file)  # a slice without one may be of this series
    slices = {file: each for file, each in of_series(found.slices).items() if not file.samefile(place)}
    return _Files({place: chosen, **slices}, of_series(found.others), found.unreadable)


def _read_folder(folder: Path) -> _Files:
    """Read the headers of a folder's files, by name. Hidden files and folders are ignored."""
    files = _Files()
    companions = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.is_dir():
            continue
        try:
            if not file.is_file():
                raise UserError(f"{file} is a link to a file that does not exist: copy the file, or remove the link")
            if is_companion(file) and not is_dicom_file(file):
                companions.append(file)
                continue
            header = read_header(file)
            (files.slices if _is_slice(file, header) else files.others)[file] = header
        except UserError as error:
            files.unreadable[file] = str(error)
    # Where slices have the suffix of a text or picture, a file with that suffix may be a damaged slice.
    suffixes = {file.suffix.lower() for file in files.slices} - {""}
    for file in companions:
        if file.suffix.lower() in suffixes:
            files.unreadable[file] = f"{file} is not a DICOM file, although slices have its suffix: copy it again"
    return files


def _refuse_without_slices(folder: Path, unreadable: dict[Path, str]) -> None:
    reason = f"; {next(iter(unreadable.values()))}" if unreadable else ""
    raise UserError(
        f"{folder} holds no DICOM slices with a position, expected a series: give the series' folder{reason}"
    )


def _refuse_unreadable(unreadable: dict[Path, str], skip: bool) -> None:
    """Raise the first file's error, with the names of the others."""
    if not unreadable or skip:
        return
    others = [file.name for file in unreadable][1:]
    also = f"; also unreadable: {listed(others)}" if others else ""
    raise UserError(f"{next(iter(unreadable.values()))}, or leave it out (--skip-unreadable){also}")


def _sop_class(header: Any) -> str:
    """Return the name of the object's class; private classes are named by their number."""
    uid = getattr(header.file_meta, "MediaStorageSOPClassUID", None) or header.get("SOPClassUID")
    return getattr(uid, "name", None) or "CT Image Storage"  # damaged: the check of missing tags reports it


def _is_slice(path: Path, header: Any) -> bool:
    """Return whether an image may be part of a volume, from few tags, so that a damaged slice is not skipped."""
    with reading(path):
        name = _sop_class(header)
        declared = "MediaStorageSOPClassUID" in header.file_meta
        # A private class; or a file that ends within the number of its class.
        private = name[0].isdigit() and ("Rows" in header or "SOPClassUID" not in header or not declared)
        # Label maps are segmentations of a class that is newer than pydicom's list of names.
        if ("Image Storage" not in name and not private) or "SegmentSequence" in header:
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
            texts = "; ".join(
                f"{uid} ({' '.join(str(found[0].get('SeriesDescription') or 'no description').split())}, "
                f"{sum(frame_count(header) for header in found)} slices)"
                for uid, found in series.items()
            )
        raise UserError(
            f"{folder} holds {len(series)} series, expected one: {texts}: give a folder with one, or a file of it"
        )


def _notes(place: Path, files: _Files) -> Iterable[str]:
    """Yield what a user should know about a series that can be read."""
    if files.unreadable:
        names = listed([file.name for file in files.unreadable])
        yield f"{place}: left out {number_of(len(files.unreadable), 'unreadable file')}: {names}"
    classes = {file: _sop_class(header) for file, header in files.others.items()}
    if others := [f"{file.name} ({name})" for file, name in classes.items() if name != _DIRECTORY]:
        yield f"{place}: left out {number_of(len(others), 'DICOM file')} without slices of a volume: {listed(others)}"
    if any(map(is_deflated, files.slices.values())):
        yield f"{place} {NO_CHECKSUM}"
    signs = [*_counts(list(files.slices.values())), *_numbering([*files.slices.values(), *files.others.values()])]
    if signs:
        slices = sum(map(frame_count, files.slices.values()))
        yield f"{place} has {number_of(slices, 'slice')} and may be incomplete: {'; '.join(signs)}"


def _counts(headers: Sequence[Any]) -> Iterable[str]:
    """Describe tags that promise more slices or files than there are."""
    for keyword, group, of_slices in _COUNTS:
        found: Counter[str] = Counter()
        promised: Counter[str] = Counter()
        for header in headers:
            name = str(header.get(group))
            found[name] += frame_count(header) if of_slices else 1
            promised[name] = max(promised[name], _whole_number(header, keyword) or 0)
        if any(found[name] < promised[name] for name in found):
            yield f"{keyword} is {sum(promised.values())}"


def _numbering(headers: Sequence[Any]) -> Iterable[str]:
    """Describe gaps in InstanceNumber.

    Steps above 1 are normal where phases share the numbers of a series, and so are numbers that do not start near 1.
    More gaps than numbers are a numbering of another kind.
    """
    series = {str(header.get("SeriesInstanceUID")) for header in headers[:1]}
    numbers = {
        _whole_number(header, "InstanceNumber") for header in headers if str(header.get("SeriesInstanceUID")) in series
    }
    present = sorted(number for number in numbers if number is not None)
    if len(present) < 2:
        return
    step = int(np.median(np.diff(present)))
    start = present[0] % step or step
    if (present[0] - start) // step >= len(present):
        start = present[0]
    missing = [
        number
        for below, above in itertools.pairwise([start - step, *present])
        for number in itertools.islice(range(below + step, above, step), len(present))
    ]
    if 0 < len(missing) < len(present):
        yield f"InstanceNumber {listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"


def _whole_number(header: Any, keyword: str) -> int | None:
    try:
        value = header.get(keyword)
        return None if value in (None, "") else int(value)
    except Exception:  # pydicom parses elements on access and raises errors of many kinds
        return None
