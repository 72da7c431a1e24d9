"""DICOM-SEG and RTSTRUCT as label maps.

A segmentation stores frames with a segment number and a position each; frames are placed one by one, so that slices
without segments, uneven spacing and overlapping segments are read as they are. Of fractional segments, voxels of at
least half of the largest value are inside. Contours are read by `dicom_contours`.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.volume.dicom_contours import open_contours
from sam2_3dmed_jax.volume.dicom_deflate import NO_CHECKSUM, is_deflated
from sam2_3dmed_jax.volume.dicom_file import is_dicom_file
from sam2_3dmed_jax.volume.dicom_frame import pixel_coding, read_header, reading
from sam2_3dmed_jax.volume.dicom_pixels import PixelDecoder
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS, Grid
from sam2_3dmed_jax.volume.image_file import check_size
from sam2_3dmed_jax.volume.label_layers import (
    Block,
    LabelFile,
    LabelLayers,
    LayerPainter,
    covering_grid,
    find_placement,
    require_placement,
)

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True, eq=False)
class _Frame:
    """One frame of a segmentation.

    Attributes:
        index: its number in the file, 0-based.
        segment: its segment; None in a label map, whose pixels are segment numbers.
        grid: of the frame alone, (column, row, 1); the length of its third axis has no meaning.
    """

    index: int
    segment: int | None
    grid: Grid


def holds_labels(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a DICOM segmentation or structure set, or a folder that contains only one."""
    return _label_file(path) is not None


def open_labels(path: str | os.PathLike[str]) -> LabelFile:
    """Read the header of a DICOM segmentation or structure set.

    Raises:
        UserError: it is damaged, or of a kind that has no voxels in space.
    """
    file = _label_file(path) or Path(path)
    header = read_header(file)
    if is_deflated(header):
        warnings.warn(f"{path} {NO_CHECKSUM}", FileWarning, stacklevel=2)
    with reading(file):
        has_contours = header.get("SOPClassUID") == STRUCTURE_SET
    if has_contours:
        return open_contours(file, header)
    with reading(file):
        names = {
            int(segment.SegmentNumber): str(segment.get("SegmentLabel") or "")
            for segment in header.get("SegmentSequence") or ()
        }
        frames = _frames(file, header)
        stack = _own_grid(frames, _distances(header))
    check, read = functools.partial(_check, file, frames), functools.partial(_read, file, frames)
    return LabelFile(str(path), stack, True, check, read, names)


def _label_file(path: str | os.PathLike[str]) -> Path | None:
    place = Path(path)
    if place.is_dir():
        files = [file for file in sorted(place.iterdir()) if file.is_file() and not file.name.startswith(".")]
        return _label_file(files[0]) if len(files) == 1 else None
    if not is_dicom_file(place):
        return None
    try:
        header = read_header(place)
        with reading(place):
            kind = header.get("SOPClassUID")
    except UserError:  # damaged, or pydicom is missing: the reader of images explains it
        return None
    return place if kind in (SEGMENTATION, LABEL_MAP, STRUCTURE_SET) else None


def _frames(path: Path, header: Any) -> list[_Frame]:
    groups = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    shape = int(header.Columns), int(header.Rows), 1
    label_map = header.get("SOPClassUID") == LABEL_MAP or header.get("SegmentationType") == "LABELMAP"

    def macro(group: Any, sequence: str, keyword: str) -> Any:
        for place in (group, shared):
            if place.get(sequence) and place[sequence][0].get(keyword) is not None:
                return place[sequence][0].get(keyword)
        raise UserError(
            f"{path} has frames without {keyword}, expected a segmentation with positions in space: export it again, "
            "or convert it to NIfTI"
        )

    frames = []
    for index, group in enumerate(groups):
        axes = np.array(macro(group, "PlaneOrientationSequence", "ImageOrientationPatient"), float).reshape(2, 3)
        rows, columns = np.array(macro(group, "PixelMeasuresSequence", "PixelSpacing"), float)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * columns, axes[1] * rows, np.cross(*axes)
        affine[:3, 3] = np.array(macro(group, "PlanePositionSequence", "ImagePositionPatient"), float)
        segment = None
        if not label_map:
            segment = int(macro(group, "SegmentIdentificationSequence", "ReferencedSegmentNumber"))
        frames.append(_Frame(index, segment, Grid(shape, LPS_TO_RAS @ affine, str(path))))
    if not frames:
        raise UserError(f"{path} is a segmentation without frames, expected one or more: export it again")
    return frames


def _distances(header: Any) -> list[float]:
    """Return the distances between slices that the header states, in mm."""
    groups = [*(header.get("SharedFunctionalGroupsSequence") or ()), *header.PerFrameFunctionalGroupsSequence[:1]]
    measures = [group.PixelMeasuresSequence[0] for group in groups if group.get("PixelMeasuresSequence")]
    stated = [each.get(name) for name in ("SpacingBetweenSlices", "SliceThickness") for each in measures]
    return [abs(float(distance)) for distance in stated if distance]


def _own_grid(frames: Sequence[_Frame], distances: Sequence[float]) -> Grid | None:
    """Return a grid that contains all frames, or None if they are not parallel and evenly spaced.

    Args:
        frames: of a segmentation, which leaves out slices without segments.
        distances: possible distances between slices, in mm.
    """
    first = frames[0].grid
    normal = first.affine[:3, 2]
    heights = np.array([(frame.grid.affine[:3, 3] - first.affine[:3, 3]) @ normal for frame in frames])
    steps = np.diff(np.unique(np.round(heights, 3)))
    found = [float(np.ptp(heights) / round(np.ptp(heights) / steps.min()))] if len(steps) else []
    for distance in [*distances, *found, 1.0]:
        affine = first.affine.copy()
        affine[:3, 2] *= distance
        grid = Grid(first.shape, affine, first.source)
        if all(find_placement(_on_slice(frame, grid), frame.grid.shape, grid) for frame in frames):
            return covering_grid(grid, *(frame.grid for frame in frames))
    return None


def _on_slice(frame: _Frame, grid: Grid) -> np.ndarray:
    """Return the affine of a frame with the third axis of the grid's slices, in the direction of the frame's normal."""
    affine = frame.grid.affine.copy()
    towards = affine[:3, 2] @ grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    axis = int(np.abs(towards).argmax())
    affine[:3, 2] = grid.affine[:3, axis] * np.sign(towards[axis])
    return affine


def _check(path: Path, frames: Sequence[_Frame], grid: Grid) -> None:
    for frame in frames:
        require_placement(str(path), _on_slice(frame, grid), frame.grid.shape, grid)


def _read(path: Path, frames: Sequence[_Frame], grid: Grid) -> LabelLayers:
    header = read_header(path)
    check_size(path, (len(frames), *frames[0].grid.shape))
    with reading(path):
        coding = pixel_coding(path, header)
    with PixelDecoder() as decoder:
        pixels = decoder.decode(path, coding)
    with reading(path):
        threshold = 1
        if header.get("SegmentationType") == "FRACTIONAL":
            threshold = int(np.ceil(int(header.get("MaximumFractionalValue") or 255) / 2))
    if len(pixels) != len(frames):
        raise UserError(f"{path} has {len(pixels)} frames of pixels, its header describes {len(frames)}: copy it again")
    parts: dict[int, list[tuple[Block, np.ndarray]]] = {}
    for frame in frames:
        plane = pixels[frame.index].T[..., None]
        placement = require_placement(str(path), _on_slice(frame, grid), frame.grid.shape, grid)
        if frame.segment is None:
            masks = [(int(value), plane == value) for value in np.unique(plane) if value]
        else:
            masks = [(frame.segment, plane >= threshold)]
        for value, mask in masks:
            if mask.any():
                parts.setdefault(value, []).append(placement.place(mask, grid, str(path)))
    painter = LayerPainter(grid, str(path))
    for value in sorted(parts):
        painter.add(value, parts[value])
    return painter.result()
