"""nnInteractive's interactions as prompts of a scan (`server.viewer_prompts`).

Points are clicks. Boxes become one box per slice, and lassos masks; those that exclude, or are drawn in planes that are
not slices, become clicks sampled from their area.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server import viewer_prompts
from sam2_3dmed_jax.server.viewer_prompts import OBJECT, SteppingChange


def point(body: dict[str, Any]) -> SteppingChange:
    """Return the click of a request.

    Raises:
        UserError: a field is missing or has another form.
    """
    voxel, include = _integers(body, "coordinates", 3), flag(body, "include_interaction")
    return lambda scan: viewer_prompts.click(scan, voxel, include)


def box(body: dict[str, Any]) -> SteppingChange:
    """Return the box of a request, `[[low, after high], ...]` per axis; a part outside of the image is cut off.

    Raises:
        UserError: a field is missing or has another form.
    """
    limits, include = _limits(body, "bbox_coords"), flag(body, "include_interaction")

    def change(scan: Scan) -> int:
        low, high = _clipped(limits, scan.shape)
        is_flat_elsewhere = (
            any(high[axis] - low[axis] == 1 for axis in range(3) if axis != scan.slice_axis)
            and high[scan.slice_axis] - low[scan.slice_axis] > 1
        )
        if include and not is_flat_elsewhere:
            last = [end - 1 for end in high]
            scan.box(low, last, object=OBJECT, corrects_masks=True)
            return 1
        if include:  # the middle of the box is likely inside of the object, its corners are not
            quarter = [(end - start) // 4 for start, end in zip(low, high, strict=True)]
            low = [start + part for start, part in zip(low, quarter, strict=True)]
            high = [end - part for end, part in zip(high, quarter, strict=True)]
        area = np.zeros(scan.shape, bool)
        area[_slices(low, high)] = True
        return viewer_prompts.scribble(scan, area, include)

    return change


def scribble(crop: np.ndarray, meta: dict[str, Any]) -> SteppingChange:
    """Return the strokes of a request; arguments as of `lasso`."""
    include, limits = flag(meta, "include_interaction"), _crop_limits(meta)
    return lambda scan: viewer_prompts.scribble(scan, _whole(crop, limits, scan.shape), include)


def lasso(crop: np.ndarray, meta: dict[str, Any]) -> SteppingChange:
    """Return the mask of a request.

    Args:
        crop: all values except 0 are in it.
        meta: of the request; `interaction_bbox` is the place of the crop, or null if it is the whole image.

    Raises:
        UserError: a field is missing or has another form.
    """
    include, limits = flag(meta, "include_interaction"), _crop_limits(meta)
    return lambda scan: viewer_prompts.lasso(scan, _whole(crop, limits, scan.shape), include)


def initial_mask(mask: np.ndarray) -> SteppingChange:
    """Return the change to a mask in place of all prompts."""

    def change(scan: Scan) -> int:
        steps = 0
        if scan.prompts:
            scan.clear()
            steps += 1
        if mask.any():
            scan.draw(mask, object=OBJECT)
            steps += 1
        return steps

    return change


def flag(body: dict[str, Any], name: str, default: bool | None = None) -> bool:
    """Return a boolean field.

    Raises:
        UserError: it is another value, or is missing and has no default.
    """
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{name}: expected true or false")
    return value


def _whole(crop: np.ndarray, limits: Sequence[Sequence[int]] | None, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the interaction on the grid of the image, bool.

    Raises:
        UserError: the crop does not fit.
    """
    drawn = crop != 0
    if limits is None:
        limits = [[0, extent] for extent in shape]
    extents = tuple(high - low for low, high in limits)
    if drawn.shape != extents or any(low < 0 or high > n for (low, high), n in zip(limits, shape, strict=True)):
        raise UserError(f"the drawing has shape {drawn.shape} at {limits}, which does not fit an image of {shape}")
    whole = np.zeros(shape, bool)
    whole[_slices(*zip(*limits, strict=True))] = drawn
    if not drawn.any():
        raise UserError("the drawing is empty")
    return whole


def _slices(low: Sequence[int], high: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, end) for start, end in zip(low, high, strict=True))


def _crop_limits(meta: dict[str, Any]) -> list[list[int]] | None:
    return None if meta.get("interaction_bbox") is None else _limits(meta, "interaction_bbox")


def _clipped(limits: Sequence[Sequence[int]], shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the first and the end of a box along each axis, inside of the image.

    Raises:
        UserError: the box is empty there.
    """
    low = [max(0, start) for start, _ in limits]
    high = [min(extent, end) for (_, end), extent in zip(limits, shape, strict=True)]
    if any(start >= end for start, end in zip(low, high, strict=True)):
        raise UserError(f"bbox_coords: {limits} contains no voxel of an image of shape {shape}")
    return low, high


def _limits(body: dict[str, Any], name: str) -> list[list[int]]:
    rows = body.get(name)
    if not isinstance(rows, list) or len(rows) != 3:
        raise UserError(f"{name}: expected three pairs of numbers")
    return [_whole_numbers(row, name, 2) for row in rows]


def _integers(body: dict[str, Any], name: str, count: int) -> list[int]:
    return _whole_numbers(body.get(name), name, count)


def _whole_numbers(values: Any, name: str, count: int) -> list[int]:
    """Return whole numbers.

    Raises:
        UserError: there are others, or another number of them.
    """
    if (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and abs(value) < 2**31 and value == int(value) for value in values)
    ):
        return [int(value) for value in values]
    raise UserError(f"{name}: expected {count} whole numbers")
