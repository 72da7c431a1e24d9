"""Objects prompted from a reference, and the label map that a model makes of them.

An object may be a union of labels, such as a pancreas with its tumour; a smaller one nested in it is written over it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.inference.segment import Segmentation, segment_volume
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, clips_of
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Grid, Volume


def segment_objects(predictor: VolumePredictor, volume: Volume, prompts: ObjectPrompts) -> Segmentation:
    """Labels uint16 `[D, H, W]` and logits, all objects in one session; without prompts there are none.

    Where objects overlap, the larger logit counts; but nested ones are written over those around them.
    """
    if not prompts:
        depth = len(volume.array)
        nothing = Result((), np.zeros((0, depth, 0, 0), np.float32), np.zeros((0, depth), np.float32))
        return Segmentation(np.zeros(volume.array.shape, np.uint16), nothing)
    found = segment_volume(predictor, volume, [prompt for own in prompts.values() for prompt in own])
    painted(found, prompts)
    return found


def painted(found: Segmentation, prompts: ObjectPrompts) -> np.ndarray:
    """The label map of a segmentation, nested objects written over those around them, in place."""
    labels = found.labels
    around = {
        own[0].object_id: [other[0].object_id for outer, other in prompts.items() if set(target) < set(outer)]
        for target, own in prompts.items()
    }
    if any(around.values()):
        masks = {value: mask for value, mask in found.object_masks() if around[value]}
        for value in (value for value in around if value in masks):  # the innermost last
            labels[masks[value] & np.isin(labels, around[value])] = value
    return labels


def segment_clips(
    predictor: VolumePredictor, volume: Volume, reference: np.ndarray, prompts: ObjectPrompts, clip_slices: int
) -> np.ndarray:
    """A label map uint16 `[D, H, W]`: each object by itself, a clip of its extent at a time, later over earlier."""
    labels = np.zeros(volume.array.shape, np.uint16)
    for start, stop, moved in clip_sessions(reference, prompts, clip_slices):
        clip = segment_volume(predictor, _slices(volume, start, stop), moved).labels
        labels[start:stop][clip > 0] = clip[clip > 0]
    return labels


def clip_sessions(
    reference: np.ndarray, prompts: ObjectPrompts, clip_slices: int
) -> Iterator[tuple[int, int, list[VoxelPrompt]]]:
    """First and past-the-last slice of each clip of each object, and its prompts on slices counted from the first."""
    for target, own in prompts.items():
        for start, stop in clips_of(np.isin(reference, target), clip_slices):
            inside = [prompt for prompt in own if start <= prompt.slice < stop]
            if inside:
                yield start, stop, [VoxelPrompt(p.object_id, p.slice - start, p.points, p.labels) for p in inside]


def _slices(volume: Volume, start: int, stop: int) -> Volume:
    """Some slices as a volume of their own."""
    shift = np.eye(4)
    shift[0, 3] = start
    _, H, W = volume.array.shape
    grid = Grid((stop - start, H, W), volume.canonical_affine @ shift, volume.grid.source)
    return Volume(volume.array[start:stop], grid, volume.modality)
