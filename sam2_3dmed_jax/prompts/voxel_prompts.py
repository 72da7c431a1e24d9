"""Prompts in voxels of a volume, one an object and canonical slice: from points, 3D boxes and drawn masks.

Users speak of voxels of their file or of millimetres (RAS); what comes out lies on canonical slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid, voxel_to_canonical

MAX_OBJECT_ID = 65535  # label maps are uint16
MAX_POINTS = 256  # of an object on one slice; each is a token that the decoder attends to

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class VoxelPrompt:
    """Prompts of one object on one canonical slice, in voxels of that slice (x = column w, y = row h)."""

    object_id: int
    slice: int
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None  # bool [H, W]


def voxel_of_mm(grid: Grid, mm: Sequence[float] | np.ndarray) -> Triple:
    """The voxel of the file, with fractions, at a point `(x, y, z)` in RAS millimetres."""
    voxel = np.linalg.inv(grid.affine) @ [*mm, 1.0]
    # Rounding errors must not put a box that ends with the volume beyond it.
    x, y, z = np.round(voxel[:3], 4).tolist()
    return x, y, z


def point_prompts(grid: Grid, points: Iterable[tuple[Triple, int, int]]) -> list[VoxelPrompt]:
    """Prompts from points `((x, y, z), label, object)` in voxels of the file.

    Raises:
        UserError: a point outside the volume.
    """
    found = []
    for voxel, label, object_id in points:
        d, h, w = voxel_to_canonical(grid, voxel)
        found.append(VoxelPrompt(object_id, _slice_of(d, grid), ((w, h),), (label,)))
    return found


def box_prompts(grid: Grid, boxes: Iterable[tuple[Triple, Triple, int]]) -> list[VoxelPrompt]:
    """Prompts from 3D boxes `(corner, corner, object)` in voxels of the file, inclusive: one on each slice they cover.

    Raises:
        UserError: a corner outside the volume.
    """
    found = []
    for first, second, object_id in boxes:
        low, high = np.sort([voxel_to_canonical(grid, first), voxel_to_canonical(grid, second)], axis=0)
        for d in range(_slice_of(low[0], grid), _slice_of(high[0], grid) + 1):
            found.append(VoxelPrompt(object_id, d, box=(low[2], low[1], high[2], high[1])))
    return found


def mask_prompts(labels: np.ndarray, source: str = "the mask") -> list[VoxelPrompt]:
    """Prompts from a label map `[D, H, W]`: each value but 0 is an object, prompted on the slices that show it.

    Raises:
        UserError: an empty label map, or a value that is no object id.
    """
    found = []
    for value in painted_objects(labels, source):
        mask = labels == value
        found += [VoxelPrompt(value, int(d), mask=mask[d]) for d in np.flatnonzero(mask.any((1, 2)))]
    return found


def painted_objects(labels: np.ndarray, source: str) -> list[int]:
    """The object ids of a painted label map.

    Raises:
        UserError: there are none, or one is out of range.
    """
    values = [int(value) for value in np.unique(labels) if value]
    if not values:
        raise UserError(f"{source} is empty; draw the object on at least one slice")
    for value in (values[0], values[-1]):
        if not 1 <= value <= MAX_OBJECT_ID:
            raise UserError(f"{source} holds the value {value}, which is no object id; use 1 to {MAX_OBJECT_ID}")
    return values


def merge_prompts(prompts: Sequence[VoxelPrompt]) -> list[VoxelPrompt]:
    """One prompt an object and slice: points add up, and join a box.

    Raises:
        UserError: on one slice an object has two boxes, too many points, or a mask and anything else.
    """
    merged: dict[tuple[int, int], VoxelPrompt] = {}
    for prompt in prompts:
        key = (prompt.object_id, prompt.slice)
        if key not in merged:
            merged[key] = prompt
            continue
        old = merged[key]
        name = f"prompts of object {prompt.object_id} on canonical slice {prompt.slice}"
        if old.mask is not None or prompt.mask is not None:
            raise UserError(f"{name}: a mask stands alone there; leave out the mask, or the other prompts")
        if old.box is not None and prompt.box is not None:
            raise UserError(f"{name}: there are two boxes; give one, or make the other one another object")
        if len(old.points) + len(prompt.points) > MAX_POINTS:
            raise UserError(f"{name}: there are more than {MAX_POINTS} points; give fewer, or a mask")
        merged[key] = replace(
            old,
            points=(*old.points, *prompt.points),
            labels=(*old.labels, *prompt.labels),
            box=prompt.box or old.box,
        )
    return list(merged.values())


def _slice_of(d: float, grid: Grid) -> int:
    """The slice that a fractional index lies on; the outer border belongs to the outermost slice."""
    return min(max(math.floor(d + 0.5), 0), grid.canonical_shape[0] - 1)
