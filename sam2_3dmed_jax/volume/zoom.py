"""Zoom: square in-plane regions of a volume around prompts, so that a small target fills more of the model's slice.

A region has whole voxels, is the same on all slices, and is inside of the slice. Its position is rounded to an eighth
of its side, so that a further prompt nearby mostly gives the same region, whose features are known. Training
(`data.clips`) and inference (`inference.zoom`) use these functions. The idea is nnInteractive's automatic zoom (Isensee
et al. 2025); the sizes and the rule of growth are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import restore_logits

Zoom = Literal["off", "auto"] | float  # float: the side of the first region, mm
OFF: Zoom = "off"
AUTO: Zoom = "auto"

CLICK_MM = 64.0  # least side with `auto`: a large nodule (30 mm) and as much of its surroundings
PROMPT_FACTOR = 3.0  # side with `auto`, in sides of the prompts
MARGIN_FACTOR = 1.5  # least side of any region, in sides of the prompts
GROWTH = 2.0  # from the side of a region that cuts the mask to the next one
MAX_GROWTHS = 4  # after which the next region is the whole slice
TOUCH = 1 / 16  # part of a border that the mask must cover to touch it: thinner tips are mostly noise
STEPS = 8  # positions of a region are multiples of its side divided by this
OUTSIDE_LOGIT = -np.inf  # outside of a region is background


class Extent(NamedTuple):
    """A rectangle of a slice between two voxels, which it contains, in voxel indices."""

    y0: float
    x0: float
    y1: float
    x1: float

    def joined(self, other: Extent) -> Extent:
        """Return the smallest rectangle that contains both."""
        low, high = np.minimum(self, other).tolist(), np.maximum(self, other).tolist()
        return Extent(low[0], low[1], high[2], high[3])


@dataclass(frozen=True)
class Region:
    """A rectangle of whole voxels, the same on all slices."""

    top: int
    left: int
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns

    @property
    def at(self) -> tuple[slice, slice]:
        """Its rows and columns, as an index of a slice."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)

    def open_sides(self, shape: Sequence[int]) -> tuple[bool, bool, bool, bool]:
        """Return whether voxels follow above, below, left and right of it, on slices of `shape` (H, W)."""
        height, width = shape
        return self.top > 0, self.top + self.rows < height, self.left > 0, self.left + self.columns < width


@dataclass(frozen=True)
class ObjectZoom:
    """The region that an object was segmented in, and what it took to find it.

    Attributes:
        region: the last one.
        side_mm: its side, mm; where the slice is narrower, the region is too.
        looks: regions in which one prompted slice alone was segmented.
        passes: for each region in which the object was propagated, the number of slices until its mask touched the
            border, and for the last region all slices.
        growths: from the first region to this one.
    """

    region: Region
    side_mm: float
    looks: int
    passes: tuple[int, ...]
    growths: int = 0


class RegionLogits(NamedTuple):
    """Logits of one object in a region."""

    logits: np.ndarray  # float32 [D, s, s]
    region: Region


Logits = np.ndarray | RegionLogits  # float32 [D, s, s] of whole slices, or of a region


def parse_zoom(text: str | float, where: str = "--zoom") -> Zoom:
    """Read the setting of the zoom: off, auto, or the side of the first region in mm.

    Raises:
        UserError: none of these; `where` is the flag or argument, for the message.
    """
    if text == "off":
        return OFF
    if text == "auto":
        return AUTO
    try:
        side = float(text)
    except (TypeError, ValueError):
        side = math.nan
    if isinstance(text, bool) or not 0 < side < math.inf:
        raise UserError(f"{where} is {text!r}, expected auto, off, or the side of the region in mm, such as 64")
    return side


def zoom_text(zoom: Zoom) -> str:
    """Return the setting as records and tables contain it: off, auto or the side in mm, such as 64."""
    return zoom if isinstance(zoom, str) else f"{zoom:g}"


def side_around(extent: Extent, zoom: Zoom, pixel_mm: tuple[float, float]) -> float:
    """Return the side of the first region, mm.

    Args:
        extent: of the prompts.
        zoom: auto, or a side, which is enlarged for prompts that do not fit.
        pixel_mm: (dy, dx).
    """
    dy, dx = pixel_mm
    prompted = max((extent.y1 - extent.y0) * dy, (extent.x1 - extent.x0) * dx)
    return max(CLICK_MM, PROMPT_FACTOR * prompted) if isinstance(zoom, str) else max(zoom, MARGIN_FACTOR * prompted)


def whole_side(shape: Sequence[int], pixel_mm: tuple[float, float]) -> float:
    """Return the longer side of slices of `shape` (H, W), mm: a region of this side is the whole slice."""
    return max(n * mm for n, mm in zip(shape, pixel_mm, strict=True))


def grown_side(side_mm: float, growths: int, whole_mm: float) -> float:
    """Return the side of the region after one of a side, which has grown already some times, up to `whole_mm`."""
    larger = side_mm * GROWTH
    return larger if growths + 1 < MAX_GROWTHS and larger < whole_mm else whole_mm


def region_shape(side_mm: float, shape: Sequence[int], pixel_mm: tuple[float, float]) -> tuple[int, int]:
    """Return (rows, columns) of a region on slices of `shape` (H, W), which it does not exceed."""
    rows, columns = (min(max(round(side_mm / mm), 1), n) for n, mm in zip(shape, pixel_mm, strict=True))
    return rows, columns


def region_around(extent: Extent, side_mm: float, shape: Sequence[int], pixel_mm: tuple[float, float]) -> Region:
    """Return the region of a side around a rectangle, moved inside of the slice.

    Args:
        extent: of the prompts or a mask; the region contains its voxels if it is large enough.
        side_mm: of the region.
        shape: (H, W), voxels of a slice.
        pixel_mm: (dy, dx).
    """
    size = region_shape(side_mm, shape, pixel_mm)
    first = [
        _first(low, high, n, limit, max(round(side_mm / STEPS / mm), 1))
        for low, high, n, limit, mm in zip(extent[:2], extent[2:], size, shape, pixel_mm, strict=True)
    ]
    return Region(first[0], first[1], *size)


def _first(low: float, high: float, n: int, limit: int, step: int) -> int:
    """Return the first of n voxels around the voxels from low to high, of 0 to limit - 1."""
    start = round(((low + high + 1 - n) / 2) / step) * step
    start = min(max(start, math.ceil(high + 0.5) - n), math.floor(low + 0.5))
    return min(max(start, 0), limit - n)


def extent_of_mask(mask: np.ndarray) -> Extent | None:
    """Return the rectangle around a mask bool `[H, W]`, or None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Extent(float(rows[0]), float(columns[0]), float(rows[-1]), float(columns[-1])) if len(rows) else None


def in_slice(extent: Extent, region: Region, cells: Sequence[int]) -> Extent:
    """Return a rectangle of a grid of `cells` (rows, columns) over a region as voxels of the slice."""
    y, x = region.rows / cells[0], region.columns / cells[1]
    return Extent(
        region.top + (extent.y0 + 0.5) * y - 0.5,
        region.left + (extent.x0 + 0.5) * x - 0.5,
        region.top + (extent.y1 + 0.5) * y - 0.5,
        region.left + (extent.x1 + 0.5) * x - 0.5,
    )


def touches_border(mask: np.ndarray, open_sides: Sequence[bool]) -> bool:
    """Return whether a mask is cut by a border of its region beyond which the slice continues.

    Args:
        mask: bool `[rows, columns]` over a region, at any resolution.
        open_sides: of the region: above, below, left, right.
    """
    borders = mask[0], mask[-1], mask[:, 0], mask[:, -1]
    return any(
        is_open and int(np.count_nonzero(border)) >= TOUCH * len(border)
        for border, is_open in zip(borders, open_sides, strict=True)
    )


def crop(volume: Volume, region: Region, at: slice = slice(None)) -> Volume:
    """Return a region of slices `at` of a volume as a volume; the voxels are not copied."""
    array = volume.array[at, *region.at]
    shift = np.eye(4)
    shift[:3, 3] = at.start or 0, region.top, region.left
    d, h, w = array.shape
    grid = Grid((d, h, w), volume.canonical_affine @ shift, volume.grid.source, is_canonical=True)
    return Volume(array, grid, volume.modality)


def logits_on_slice(logits: Logits, index: int, shape: tuple[int, int]) -> np.ndarray:
    """Return the logits of one slice on its voxels, float32 `[H, W]`; outside of a region they are -inf.

    Args:
        logits: of all slices.
        index: of the slice.
        shape: (H, W), voxels of the slice.
    """
    if not isinstance(logits, RegionLogits):
        return np.asarray(restore_logits(logits[index : index + 1], shape)[0])
    on_slice = np.full(shape, OUTSIDE_LOGIT, np.float32)
    on_slice[logits.region.at] = restore_logits(logits.logits[index : index + 1], logits.region.shape)[0]
    return on_slice
