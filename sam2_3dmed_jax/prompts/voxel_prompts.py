"""Prompts in voxels of canonical slices, from points, 3D boxes and drawn masks.

Input coordinates are voxels of the image file as stored, or RAS millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.object_ids import MAX_OBJECT_ID
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.geometry import Grid, voxel_to_canonical
from sam2_3dmed_jax.volume.label_layers import LabelLayers, values_in

MAX_POINTS = 256  # per object and slice; each point is a token that the decoder attends to

Triple = tuple[float, float, float]


class MaskFile(NamedTuple):
    """The file that a mask prompt was read from."""

    path: str
    value: int | None  # of the object in the file; None: all values except 0


@dataclass(frozen=True)
class PromptOrigin:
    """The label map that the prompts of an object were drawn from.

    Attributes:
        path: absolute path of the file or folder; None for labels in memory.
        sha256: of the file, or over all files of the folder; None for labels in memory.
        protocol: how the prompts were drawn, one of `automatic_start.START_PROTOCOLS`.
        follow_up: the labels belong to an earlier scan.
        labels: labels of the object in the label map.
    """

    path: str | None
    sha256: str | None
    protocol: str
    follow_up: bool
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class VoxelPrompt:
    """Prompts of one object on one canonical slice, in voxels of that slice (x = column w, y = row h)."""

    object_id: int
    slice: int
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None  # bool [H, W]
    mask_file: MaskFile | None = None  # None: no mask, or one that was not read from a file
    origin: PromptOrigin | None = None  # None: the user gave the prompt


@dataclass(frozen=True)
class VolumePrompts:
    """The prompts of all objects of a volume, and what is known about objects, by id."""

    prompts: list[VoxelPrompt] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    codes: dict[int, str] = field(default_factory=dict)  # of SNOMED CT, where given
    colors: dict[int, str] = field(default_factory=dict)  # "#9d6ca2", where given
    files: list[str] = field(default_factory=list)  # label maps that prompt files name

    def labels(self) -> dict[int, ObjectLabel]:
        """Return the label of each prompted object, by id; objects without a name are called "object 1"."""
        return {
            number: ObjectLabel(
                self.names.get(number, f"object {number}"), self.codes.get(number, ""), self.colors.get(number, "")
            )
            for number in sorted({prompt.object_id for prompt in self.prompts})
        }


def voxel_of_mm(grid: Grid, mm: Sequence[float] | np.ndarray) -> Triple:
    """Return the fractional voxel of the file at a point `(x, y, z)` in RAS millimetres."""
    voxel = np.linalg.inv(grid.affine) @ [*mm, 1.0]
    # Rounding errors must not move a box that ends at the border of the volume beyond it.
    x, y, z = np.round(voxel[:3], 4).tolist()
    return x, y, z


def point_prompts(grid: Grid, points: Iterable[tuple[Triple, int, int]]) -> list[VoxelPrompt]:
    """Return the prompts of points `((x, y, z), label, object)` in voxels of the file.

    Raises:
        UserError: a point is outside the volume.
    """
    prompts = []
    for voxel, label, object_id in points:
        d, h, w = voxel_to_canonical(grid, voxel)
        prompts.append(VoxelPrompt(object_id, _slice_of(d, grid), ((w, h),), (label,)))
    return prompts


def box_prompts(grid: Grid, boxes: Iterable[tuple[Triple, Triple, int]]) -> list[VoxelPrompt]:
    """Return the prompts of 3D boxes `(corner, corner, object)` in inclusive voxels of the file, one per covered slice.

    Raises:
        UserError: a corner is outside the volume.
    """
    prompts = []
    for first, second, object_id in boxes:
        low, high = np.sort([voxel_to_canonical(grid, first), voxel_to_canonical(grid, second)], axis=0)
        for d in range(_slice_of(low[0], grid), _slice_of(high[0], grid) + 1):
            prompts.append(VoxelPrompt(object_id, d, box=(low[2], low[1], high[2], high[1])))
    return prompts


def clipped_box(grid: Grid, first: Triple, second: Triple) -> tuple[Triple, Triple]:
    """Return the part of a box that is inside the volume, for boxes that were drawn in millimetres.

    Args:
        grid: the grid of the file.
        first: a corner, in fractional voxels of the file.
        second: the opposite corner.

    Raises:
        UserError: the whole box is outside the volume.
    """
    low, high = np.sort([first, second], axis=0)
    border = np.array(grid.shape) - 0.5
    if (high <= -0.5).any() or (low >= border).any():
        raise UserError(
            f"voxel box {np.round(low, 1).tolist()} to {np.round(high, 1).tolist()} is outside "
            f"{grid.source or 'the image'}, whose shape is {list(grid.shape)}; draw it on the image"
        )
    (x0, y0, z0), (x1, y1, z1) = (np.clip(corner, -0.5, border).tolist() for corner in (low, high))
    return (x0, y0, z0), (x1, y1, z1)


def mask_prompts(labels: np.ndarray, source: str = "the mask") -> list[VoxelPrompt]:
    """Return the mask prompts of a label map `[D, H, W]`: each value except 0 is an object, prompted where it is drawn.

    Raises:
        UserError: the label map is empty, or a value is not an object id.
    """
    prompts = []
    for value in drawn_object_ids(labels, source):
        prompts += [VoxelPrompt(value, d, mask=mask) for d, mask in _slices_of(labels == value)]
    return prompts


def drawn_slices(labels: LabelLayers, value: int | None) -> list[tuple[int, np.ndarray]]:
    """Return the canonical slices on which a value of a label map is drawn, with its mask bool `[H, W]` there.

    Args:
        labels: of a file.
        value: None: all values except 0.
    """
    return _slices_of(labels.inside() if value is None else labels.mask([value]))


def _slices_of(mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
    # Copies, because a view would keep the mask of the whole volume in memory for as long as a prompt is kept.
    return [(int(d), mask[d].copy()) for d in np.flatnonzero(mask.any((1, 2)))]


def drawn_object_ids(labels: np.ndarray, source: str) -> list[int]:
    """Return the object ids in a label map that was drawn by a user; `source` is named in messages.

    Raises:
        UserError: the label map is empty, or a value is not an object id.
    """
    values = values_in(labels)
    if not values:
        raise UserError(f"{source} is empty; draw the object on at least one slice")
    for value in (values[0], values[-1]):
        if not 1 <= value <= MAX_OBJECT_ID:
            raise UserError(f"{source} has the value {value}, which is not an object id; use 1 to {MAX_OBJECT_ID}")
    return values


def merge_prompts(prompts: Sequence[VoxelPrompt]) -> list[VoxelPrompt]:
    """Merge prompts to one per object and slice: all points, and a box.

    Raises:
        UserError: on one slice, an object has two boxes, too many points, or a mask and another prompt.
    """
    merged: dict[tuple[int, int], VoxelPrompt] = {}
    for prompt in prompts:
        key = (prompt.object_id, prompt.slice)
        if key not in merged:
            merged[key] = prompt
            continue
        earlier = merged[key]
        name = f"prompts of object {prompt.object_id} on canonical slice {prompt.slice}"
        if earlier.mask is not None or prompt.mask is not None:
            raise UserError(f"{name}: a mask excludes other prompts there; leave out the mask, or the other prompts")
        if earlier.box is not None and prompt.box is not None:
            raise UserError(f"{name}: there are two boxes; give one, or use another object id for the other one")
        if len(earlier.points) + len(prompt.points) > MAX_POINTS:
            raise UserError(f"{name}: there are more than {MAX_POINTS} points; give fewer, or a mask")
        merged[key] = replace(
            earlier,
            points=(*earlier.points, *prompt.points),
            labels=(*earlier.labels, *prompt.labels),
            box=prompt.box or earlier.box,
        )
    return list(merged.values())


def _slice_of(d: float, grid: Grid) -> int:
    """Return the slice of a fractional index; the outer border of the volume belongs to the outermost slice."""
    return min(max(math.floor(d + 0.5), 0), grid.canonical_shape[0] - 1)
