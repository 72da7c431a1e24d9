"""Smallest box around two masks, as one array of bits: all that surface metrics need of a volume."""

from __future__ import annotations

import numpy as np


def union_box(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the smallest box around both masks, followed by a plane, a row and a column of zeros.

    Args:
        one: bool `[D, H, W]`.
        other: bool `[D, H, W]`; at least one of the two masks is not empty.

    Returns:
        uint8 `[d + 1, h + 1, w + 1]`: bit 0 is `one`, bit 1 `other`.
    """
    around = union_extent(one, other)
    box = np.zeros([axis.stop - axis.start + 1 for axis in around], np.uint8)
    inner = box[:-1, :-1, :-1]
    np.left_shift(other[around].view(np.uint8), 1, out=inner)
    inner |= one[around].view(np.uint8)
    return box


def union_extent(one: np.ndarray, other: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the smallest box around both masks, bool `[D, H, W]`; of empty masks, one without voxels."""
    extents = [found for mask in (one, other) if (found := extent(mask)) is not None]
    if not extents:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    first, last = np.min([e[0] for e in extents], 0), np.max([e[1] for e in extents], 0)
    z, y, x = (slice(int(low), int(high) + 1) for low, high in zip(first, last, strict=True))
    return z, y, x


def extent(mask: np.ndarray) -> tuple[list[int], list[int]] | None:
    """Return the first and the last index of True on each axis, or None for an empty mask."""
    # One plane at a time: `any` stops at the first True of a plane, and the other axes need only the object's planes.
    planes = np.flatnonzero([plane.any() for plane in mask])
    if not planes.size:
        return None
    shadow = mask[planes[0]].copy()
    for plane in mask[planes[0] + 1 : planes[-1] + 1]:
        shadow |= plane
    rows, columns = np.flatnonzero(shadow.any(1)), np.flatnonzero(shadow.any(0))
    axes = (planes, rows, columns)
    return [int(indices[0]) for indices in axes], [int(indices[-1]) for indices in axes]
