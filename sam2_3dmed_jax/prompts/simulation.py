"""Simulation of points and boxes from reference masks, in voxel indices (x column, y row) of one canonical slice.

A centre point is the in-plane maximum of the distance transform in mm, which is inside objects of any shape; the paper
does not define its "centre points" further.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def largest_slice(mask: np.ndarray) -> int:
    """Return the slice with the most voxels of the object; the lowest of several.

    Args:
        mask: `[D, H, W]`, non-zero inside the object.

    Raises:
        UserError: the mask is empty.
    """
    areas = np.count_nonzero(mask, axis=(1, 2))
    if not areas.any():
        raise UserError(f"the mask is empty on all {len(areas)} slices; give a mask with the object")
    return int(areas.argmax())


def centre_point(mask2d: np.ndarray, spacing_yx: tuple[float, float]) -> Point:
    """Return the voxel of the object that is farthest from its border; the first in row order of several.

    Everything beyond the slice counts as background.

    Args:
        mask2d: `[H, W]`, non-zero inside the object.
        spacing_yx: (dy, dx) in mm.

    Returns:
        (x, y) of the voxel.

    Raises:
        UserError: the mask is empty.
    """
    x0, y0, x1, y1 = (int(side) for side in box_of(mask2d))
    # The nearest background of a voxel of the object is at most one voxel outside the box, so the crop is exact.
    inside = np.pad(np.asarray(mask2d)[y0 : y1 + 1, x0 : x1 + 1] != 0, 1)
    distance = ndimage.distance_transform_edt(inside, sampling=spacing_yx)
    row, column = np.unravel_index(np.argmax(distance), inside.shape)
    return float(column - 1 + x0), float(row - 1 + y0)


def random_point(mask2d: np.ndarray, rng: np.random.Generator) -> Point:
    """Draw a voxel of the object, each with equal probability.

    Args:
        mask2d: `[H, W]`, non-zero inside the object.
        rng: the random generator.

    Returns:
        (x, y) of the voxel.

    Raises:
        UserError: the mask is empty.
    """
    rows, columns = _voxels_of(mask2d)
    chosen = int(rng.integers(len(rows)))
    return float(columns[chosen]), float(rows[chosen])


def box_of(mask2d: np.ndarray) -> Box:
    """Return the smallest box around the object.

    Args:
        mask2d: `[H, W]`, non-zero inside the object.

    Returns:
        (x0, y0, x1, y1), inclusive indices of its outermost voxels.

    Raises:
        UserError: the mask is empty.
    """
    rows, columns = _voxels_of(mask2d)
    return float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max())


def jitter_box(box: Box, fraction: float, rng: np.random.Generator, shape: tuple[int, int]) -> Box:
    """Move each side of a box by uniform noise of up to `fraction` of the extent of the box along that axis.

    Args:
        box: (x0, y0, x1, y1) in voxel indices, inclusive.
        fraction: of the extent, 0 or more.
        rng: the random generator.
        shape: (H, W) of the slice.

    Returns:
        (x0, y0, x1, y1), not rounded, with x0 <= x1 and y0 <= y1, clipped to the slice.
    """
    x0, y0, x1, y1 = box
    extent_x, extent_y = x1 - x0 + 1, y1 - y0 + 1
    noise = rng.uniform(-fraction, fraction, 4) * (extent_x, extent_y, extent_x, extent_y)
    left, right = sorted((_clip(x0 + noise[0], shape[1]), _clip(x1 + noise[2], shape[1])))
    top, bottom = sorted((_clip(y0 + noise[1], shape[0]), _clip(y1 + noise[3], shape[0])))
    return left, top, right, bottom


def to_pixels(points: np.ndarray, shape: tuple[int, int], image_size: int) -> np.ndarray:
    """Convert voxel indices to pixels of the resized S x S slice: `(x + 0.5) * S / W - 0.5`.

    Args:
        points: `[..., 2]` of (x, y); a box is two points.
        shape: (H, W) of the slice in voxels.
        image_size: S, pixels.

    Returns:
        `[..., 2]` float32 of (x, y).
    """
    scale = image_size / np.array([shape[1], shape[0]], np.float64)
    return ((np.asarray(points, np.float64) + 0.5) * scale - 0.5).astype(np.float32)


def _voxels_of(mask2d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the voxels of an object."""
    rows, columns = np.nonzero(mask2d)
    if len(rows) == 0:
        height, width = np.shape(mask2d)
        raise UserError(f"the mask is empty on its slice of {height} x {width} voxels; give a mask with the object")
    return rows, columns


def _clip(value: float, length: int) -> float:
    return float(min(max(value, 0.0), length - 1.0))
