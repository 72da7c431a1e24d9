"""Sorting of DICOM slices along their normal, the check for a regular grid, and resampling to one on request.

Positions decide, never SliceThickness. Slices within 1 % of a regular grid are accepted unchanged; the third axis of
the grid is the true displacement between slices, so that a small tilt is preserved.
"""

from __future__ import annotations

import filecmp
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.volume.dicom_frame import Frame
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS, Grid
from sam2_3dmed_jax.volume.image_file import check_size

_TOLERANCE = 0.01  # relative to the spacing, for each step between slices
_ROUNDING_MM = 0.01  # positions are often written with two decimals
_DRIFT = 0.1  # relative to the spacing: limit of the sum of small deviations
_SAME = 1e-3  # of direction cosines, and relative to the pixel spacing
_LISTED = 3  # examples in a message


@dataclass(frozen=True, eq=False)
class Resampling:
    """Mapping of slices to a regular grid.

    Attributes:
        heights: `[K]` mm along the normal from the first slice.
        targets: `[T]` mm, heights of the slices of the grid.
        shifts: `[K, 2]` pixels (rows, columns) by which each slice moves within the grid's plane, 0 or more.
    """

    heights: np.ndarray
    targets: np.ndarray
    shifts: np.ndarray


@dataclass(frozen=True, eq=False)
class Stack:
    """A sorted series.

    Attributes:
        frames: ascending along the slice normal.
        grid: (i, j, k) are (column, row, slice), as in ITK.
        resampling: the mapping of the frames to the grid; None if they are on it already.
        gaps: where slices are missing and are interpolated; None if nowhere.
    """

    frames: tuple[Frame, ...]
    grid: Grid
    resampling: Resampling | None
    gaps: str | None = None


def stack_frames(frames: Sequence[Frame], source: str, resample: bool = False) -> Stack:
    """Sort and check the slices of a series.

    With `resample`, gaps and uneven spacing are replaced by the finest spacing of the series, adjusted so that the
    first and the last slice keep their positions. Tilted slices are put on an orthogonal grid that holds them all.

    Args:
        frames: one or more.
        source: the path that the user gave.
        resample: put irregular slices on a regular grid by interpolation.

    Raises:
        UserError: orientations, matrix or pixel spacing differ, two slices share a position, or (without `resample`)
            a slice is missing, or spacing or tilt deviates by more than 1 %.
    """
    if resample:
        frames = _without_copies(frames)
    _check_alike(frames, source)
    normal = np.cross(*frames[0].axes)
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    first, (rows, columns) = frames[0], frames[0].shape
    if len(frames) == 1:
        step = normal * _thickness(first)
        return Stack((first,), _grid(first, (columns, rows, 1), step, first.position, source), None)
    offsets = np.stack([frame.position - first.position for frame in frames])
    heights = offsets @ normal
    _check_duplicates(frames, heights, source)
    spacing = _finest(heights)
    tilt = _tilt(offsets - heights[:, None] * normal, heights, frames, spacing)
    uneven = _unevenness(heights, float(first.position @ normal))
    problem = tilt or uneven
    if problem is None:
        step = offsets[-1] / (len(frames) - 1)
        return Stack(tuple(frames), _grid(first, (columns, rows, len(frames)), step, first.position, source), None)
    if not resample:
        raise UserError(f"{source} {problem}: find the missing files, or put the slices on a regular grid (--resample)")
    stack = _onto_regular_grid(frames, offsets, spacing, bool(tilt), source)
    return replace(stack, gaps=f"{source} {uneven}: slices between them are interpolated") if uneven else stack


def _without_copies(frames: Sequence[Frame]) -> list[Frame]:
    """Drop frames of files that are equal, byte for byte; anonymizers may give all files of a series one UID."""
    first: dict[tuple[str, int, tuple[float, ...]], list[Frame]] = {}
    for frame in frames:
        alike = first.setdefault((frame.uid, frame.index, tuple(frame.position.tolist())), [])
        if not any(filecmp.cmp(frame.path, other.path, shallow=False) for other in alike):
            alike.append(frame)
    return [frame for alike in first.values() for frame in alike]


def resample_slices(slices: np.ndarray, plan: Resampling, grid: Grid, fill: float) -> np.ndarray:
    """Interpolate linearly: within the plane where slices shift, then between the two nearest slices.

    Args:
        slices: `[K, rows, columns]` float32, ascending.
        plan: from `stack_frames`, like the grid.
        grid: grid of the result.
        fill: value where no slice is.

    Returns:
        `[T, rows, columns]` float32.
    """

    @functools.lru_cache(maxsize=2)
    def placed(k: int) -> np.ndarray:
        wide = np.full((grid.shape[1], grid.shape[0]), fill, np.float32)
        wide[: slices.shape[1], : slices.shape[2]] = slices[k]
        return np.asarray(ndimage.shift(wide, plan.shifts[k], order=1, cval=fill)) if plan.shifts[k].any() else wide

    out = np.empty(grid.shape[::-1], np.float32)
    for t, height in enumerate(plan.targets):
        below = int(np.clip(np.searchsorted(plan.heights, height, side="right") - 1, 0, len(slices) - 2))
        weight = np.float32((height - plan.heights[below]) / (plan.heights[below + 1] - plan.heights[below]))
        out[t] = placed(below) * (1 - weight) + placed(below + 1) * weight
    return out


def _onto_regular_grid(
    frames: Sequence[Frame], offsets: np.ndarray, spacing: float, tilted: bool, source: str
) -> Stack:
    """Keep both ends in place; a tilted series gets a grid that contains all of its slices."""
    first, (rows, columns), axes = frames[0], frames[0].shape, frames[0].axes
    normal = np.cross(*axes)
    heights = offsets @ normal
    steps = max(1, math.ceil(heights[-1] / spacing - _DRIFT))
    pixel = np.array(first.spacing)
    shifts = offsets @ axes[::-1].T / pixel if tilted else np.zeros((len(frames), 2))
    corner = shifts.min(axis=0)
    extra_rows, extra_columns = np.ceil(np.ptp(shifts, axis=0) - _TOLERANCE).astype(int).tolist()
    shape = columns + extra_columns, rows + extra_rows, steps + 1
    check_size(source, shape)  # before the slices of the grid are listed
    grid = _grid(
        first,
        shape,
        (normal * heights[-1] if tilted else offsets[-1]) / steps,
        first.position + (corner * pixel) @ axes[::-1],
        source,
    )
    return Stack(tuple(frames), grid, Resampling(heights, np.linspace(0.0, heights[-1], steps + 1), shifts - corner))


def _grid(first: Frame, shape: tuple[int, int, int], step: np.ndarray, corner: np.ndarray, source: str) -> Grid:
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.spacing[1]
    affine[:3, 1] = first.axes[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = corner
    return Grid(shape, LPS_TO_RAS @ affine, source)


def _check_alike(frames: Sequence[Frame], source: str) -> None:
    for name, values, tolerance in (
        ("ImageOrientationPatient", [frame.axes.ravel() for frame in frames], _SAME),
        ("Rows and Columns", [np.array(frame.shape) for frame in frames], 0.0),
        ("PixelSpacing", [np.array(frame.spacing) for frame in frames], _SAME * min(frames[0].spacing)),
    ):
        others = [k for k, value in enumerate(values) if np.abs(value - values[0]).max() > tolerance]
        if others:
            places = ", ".join(f"{np.round(values[k], 4).tolist()} at {_at(frames[k])}" for k in others[:_LISTED])
            raise UserError(
                f"{source} mixes {name} in one series: {np.round(values[0], 4).tolist()} at {_at(frames[0])}, but "
                f"{places}, {len(others)} of {len(frames)} slices in all: give each kind a folder of its own "
                "(--resample cannot join them)"
            )


def _check_duplicates(frames: Sequence[Frame], heights: np.ndarray, source: str) -> None:
    # A tenth of the mean distance allows fine series; a nanometre is the noise of the projection onto the normal.
    same = max(min(_ROUNDING_MM, 0.1 * float(np.diff(heights).mean())), 1e-6)
    twice = np.flatnonzero(np.diff(heights) <= same)
    if len(twice):
        places = ", ".join(
            f"{_at(frames[k])} and {frames[k + 1].path.name} at {_mm(frames[k + 1])}" for k in twice[:_LISTED]
        )
        raise UserError(
            f"{source} holds several slices at one position, {len(twice)} times: {places}: keep one file for each "
            "position, or give each phase a folder of its own (--resample drops copies of a file, and no others)"
        )


def _thickness(frame: Frame) -> float:
    """Return the slice distance from the header, because a single slice has no neighbour."""
    if not frame.thickness:
        raise UserError(
            f"{frame.path} is a series of one slice without SpacingBetweenSlices or SliceThickness, expected one of "
            "them in mm: give the whole series"
        )
    return frame.thickness


def _finest(heights: np.ndarray) -> float:
    """Return the smallest distance between slices: the median of the distances within the tolerance of the minimum."""
    steps = np.diff(heights)
    return float(np.median(steps[steps <= steps.min() + 2 * _tolerance(float(steps.min()))]))


def _tolerance(spacing: float) -> float:
    return max(_TOLERANCE * spacing, min(_ROUNDING_MM, _DRIFT * spacing))


def _tilt(lateral: np.ndarray, heights: np.ndarray, frames: Sequence[Frame], spacing: float) -> str | None:
    """Describe how slices shift within their plane; None if negligible. A small even shift is kept in the affine."""
    steps = np.linalg.norm(np.diff(lateral, axis=0), axis=1) / np.diff(heights) * spacing
    bend = np.linalg.norm(lateral - np.outer(heights / heights[-1], lateral[-1]), axis=1).max()
    if steps.max() <= _tolerance(spacing) and bend <= _DRIFT * spacing:
        return None
    return (
        f"has tilted slices: from one to the next they move by up to {steps.max():.4g} mm within their plane and by "
        f"{spacing:.4g} mm across it, at positions {_positions(frames)}"
    )


def _unevenness(heights: np.ndarray, start: float) -> str | None:
    """Describe irregular distances between slices; None if they are regular."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    wrong = np.flatnonzero(np.abs(steps - usual) > _tolerance(usual))
    if not len(wrong):
        drift = float(np.abs(heights - np.linspace(0.0, heights[-1], len(heights))).max())
        return None if drift <= _DRIFT * usual else f"has slices up to {drift:.4g} mm off a regular spacing"
    places = listed([f"{start + heights[k]:.6g} to {start + heights[k + 1]:.6g}" for k in wrong])
    kind = "gaps between slices" if steps[wrong].max() > 1.5 * usual else "uneven spacing between slices"
    return f"has {kind}, expected {usual:.4g} mm as in most places, at positions along the normal {places} mm"


def _positions(frames: Sequence[Frame]) -> str:
    return ", ".join(_mm(frame) for frame in frames[:_LISTED]) + (", ..." if len(frames) > _LISTED else "") + " mm"


def _mm(frame: Frame) -> str:
    return str(np.round(frame.position, 3).tolist())


def _at(frame: Frame) -> str:
    return f"{_mm(frame)} ({frame.path.name})"
