"""Scribbles: strokes drawn in a label map, from which clicks are sampled.

The voxels of a stroke are inside the object, but its border is not the object's border, so it is not a mask prompt. On
each slice, a few voxels of the strokes become clicks. Farthest-point sampling (Gonzalez 1985) spreads them over all
strokes, while the number of tokens stays small.
"""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, drawn_object_ids, merge_prompts

POINTS = 8  # per object, slice and label


def scribble_prompts(
    labels: np.ndarray, spacing: tuple[float, float, float], source: str = "the scribble", outside: int | None = None
) -> list[VoxelPrompt]:
    """Return the prompts of drawn strokes: each value except 0 is an object.

    Args:
        labels: `[D, H, W]`, integers.
        spacing: (dz, dy, dx) in mm.
        source: name of the file in messages.
        outside: the value of strokes that are outside of all objects drawn on their slice, or None.

    Raises:
        UserError: nothing is drawn, a value is not an object id, or a slice has only strokes of `outside`.
    """
    is_outside = np.zeros(labels.shape, bool) if outside is None else labels == outside
    objects = np.where(is_outside, 0, labels)
    prompts = []
    for object_id in drawn_object_ids(objects, source):
        strokes = objects == object_id
        prompted = strokes.any((1, 2))
        prompts += stroke_prompts(strokes, object_id, 1, spacing)
        prompts += stroke_prompts(is_outside & prompted[:, None, None], object_id, 0, spacing)
    only_outside = is_outside.any((1, 2)) & ~objects.any((1, 2))
    if only_outside.any():
        raise UserError(
            f"{source}: canonical slice {only_outside.argmax()} has only strokes outside; draw the object there too"
        )
    return merge_prompts(prompts)


def stroke_prompts(
    strokes: np.ndarray, object_id: int, label: int, spacing: tuple[float, float, float]
) -> list[VoxelPrompt]:
    """Return the prompts of strokes of one object.

    Args:
        strokes: bool `[D, H, W]`.
        object_id: the object.
        label: 1, the strokes are inside of it; 0, outside.
        spacing: (dz, dy, dx) in mm.
    """
    prompts = []
    for d in np.flatnonzero(strokes.any((1, 2))).tolist():
        points = spread_points(strokes[d], POINTS, spacing[1:])
        prompts.append(VoxelPrompt(object_id, d, points, (label,) * len(points)))
    return prompts


def spread_points(mask2d: np.ndarray, count: int, spacing_yx: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Choose at most `count` voxels of a mask by greedy farthest-point sampling in mm.

    The first is the voxel nearest to the mean of all voxels. Of several candidates, the first in row order is chosen.

    Args:
        mask2d: bool `[H, W]`.
        count: 1 or more.
        spacing_yx: (dy, dx) in mm.

    Returns:
        (x, y) of each chosen voxel.
    """
    voxels = np.argwhere(mask2d)  # [n, 2] of (row, column)
    if not len(voxels):
        return ()
    mm = voxels * np.asarray(spacing_yx)
    chosen = [int(((mm - mm.mean(0)) ** 2).sum(1).argmin())]
    nearest = np.full(len(mm), np.inf)  # squared distance to the nearest chosen voxel
    while len(chosen) < min(count, len(voxels)):
        nearest = np.minimum(nearest, ((mm - mm[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(nearest.argmax()))
    return tuple((float(column), float(row)) for row, column in voxels[chosen])
