"""Scribbles: strokes painted in a label map, sampled to clicks.

A stroke says that its voxels are inside; it does not say where the object ends, so it is no mask. Each slice keeps
a few of the painted voxels, far from each other (farthest-point sampling, Gonzalez 1985), so that all strokes on it
are heard and the number of tokens stays small.
"""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, painted_objects

POINTS = 8  # of an object on one slice, of each label


def scribble_prompts(
    labels: np.ndarray, spacing: tuple[float, float, float], source: str = "the scribble", outside: int | None = None
) -> list[VoxelPrompt]:
    """Prompts from painted strokes: each value but 0 is an object.

    Args:
        labels: `[D, H, W]`, integers.
        spacing: (dz, dy, dx) in mm.
        source: the file, for messages.
        outside: the value of strokes that lie outside of every object painted on their slice, or None.

    Raises:
        UserError: nothing is painted, a value is no object id, or a slice has strokes of `outside` alone.
    """
    negative = np.zeros(labels.shape, bool) if outside is None else labels == outside
    inside = np.where(negative, 0, labels)
    found = []
    for value in painted_objects(inside, source):
        strokes = inside == value
        for d in np.flatnonzero(strokes.any((1, 2))).tolist():
            positive = spread_points(strokes[d], POINTS, spacing[1:])
            negatives = spread_points(negative[d], POINTS, spacing[1:])
            given = (1,) * len(positive) + (0,) * len(negatives)
            found.append(VoxelPrompt(value, d, (*positive, *negatives), given))
    alone = negative.any((1, 2)) & ~inside.any((1, 2))
    if alone.any():
        raise UserError(
            f"{source}: canonical slice {int(alone.argmax())} has strokes outside alone; paint the object on it too"
        )
    return found


def spread_points(mask2d: np.ndarray, count: int, spacing_yx: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """At most `count` voxels of a mask, as far from each other in mm as greedy choice makes them.

    The first is the one nearest the mean of all; of several, the first in row order wins.

    Args:
        mask2d: bool `[H, W]`.
        count: 1 or more.
        spacing_yx: (dy, dx) in mm.

    Returns:
        (x, y) each, indices of voxels of the mask.
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
