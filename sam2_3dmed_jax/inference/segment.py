"""From a volume and prompts in voxels to a label map on the volume's own grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.feature_store import Progress
from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.inference.prompt import Prompt
from sam2_3dmed_jax.volume.geometry import Grid, Volume, voxel_to_canonical
from sam2_3dmed_jax.volume.intensity import PreparedSlices, resize_slices, restore_logits
from sam2_3dmed_jax.volume.prompts import to_pixels


@dataclass(frozen=True, eq=False)
class VoxelPrompt:
    """Prompts of one object on one canonical slice, in voxels of that slice (x = column w, y = row h)."""

    object_id: int
    slice: int
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None  # bool [H, W]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map and what it was made of."""

    labels: np.ndarray  # uint16 [D, H, W], object ids; where objects overlap, the larger logit
    result: Result


def segment_volume(
    predictor: VolumePredictor, volume: Volume, prompts: Sequence[VoxelPrompt], progress: Progress | None = None
) -> Segmentation:
    """Segment a volume with the preprocessing of the predictor's checkpoint.

    Raises:
        UserError: no prompts, or prompts that do not fit.
    """
    size = predictor.model.config.image_size
    shape = volume.array.shape[1:]
    slices = PreparedSlices(volume, predictor.model.info.preprocessing, size)
    pixels = [_to_slice(prompt, shape, size) for prompt in merge_prompts(prompts)]
    result = predictor.predict(slices, pixels, progress)
    labels = np.zeros(volume.array.shape, np.uint16)
    ids = np.array([0, *result.object_ids], np.uint16)
    for d in range(len(labels)):
        # Logits are interpolated, then thresholded: the background's logit is 0.
        logits = restore_logits(result.mask_logits[:, d], shape)
        best = np.concatenate([np.zeros((1, *shape), np.float32), logits]).argmax(0)
        labels[d] = ids[best]
    return Segmentation(labels, result)


def point_prompts(grid: Grid, points: Iterable[tuple[tuple[float, float, float], int, int]]) -> list[VoxelPrompt]:
    """Prompts from points `((x, y, z), label, object)` in voxels of the file.

    Raises:
        UserError: a point outside the volume.
    """
    found = []
    for voxel, label, object_id in points:
        d, h, w = voxel_to_canonical(grid, voxel)
        found.append(VoxelPrompt(object_id, _slice_of(d, grid), ((w, h),), (label,)))
    return found


def box_prompts(
    grid: Grid, boxes: Iterable[tuple[tuple[float, float, float], tuple[float, float, float], int]]
) -> list[VoxelPrompt]:
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
        UserError: an empty label map.
    """
    found = []
    for value in np.unique(labels[labels > 0]).tolist():
        mask = labels == value
        found += [VoxelPrompt(int(value), int(d), mask=mask[d]) for d in np.flatnonzero(mask.any((1, 2)))]
    if not found:
        raise UserError(f"{source} is empty; draw the object on at least one slice")
    return found


def merge_prompts(prompts: Sequence[VoxelPrompt]) -> list[VoxelPrompt]:
    """One prompt an object and slice: points add up, and join a box.

    Raises:
        UserError: on one slice an object has two boxes, or a mask and anything else.
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


def _to_slice(prompt: VoxelPrompt, shape: tuple[int, int], size: int) -> Prompt:
    def pixels(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        # A click on the border voxel of a scan that is enlarged lands on the border, not beyond it.
        moved = np.clip(to_pixels(np.asarray(points, float), shape, size), -0.5, size - 0.5)
        return [(float(x), float(y)) for x, y in moved]

    box = None
    if prompt.box is not None:
        (x0, y0), (x1, y1) = pixels([prompt.box[:2], prompt.box[2:]])
        box = (x0, y0, x1, y1)
    mask = None
    if prompt.mask is not None:
        share = resize_slices(prompt.mask[None].astype(np.float32), size)[0]
        # A mask smaller than a pixel keeps the pixel that it fills most: an empty one would say "not here".
        mask = (share >= min(0.5, float(share.max()))) & (share > 0)
    points = pixels(prompt.points) if prompt.points else ()
    return Prompt(prompt.object_id, prompt.slice, points, prompt.labels, box, mask)
