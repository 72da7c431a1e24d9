"""Segmentation of prompted objects into a label map, as an evaluation or a submission needs it.

An object may be a union of labels, such as a pancreas with its tumour. A smaller object inside it is painted over it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.inference.segment import Segmentation, segment_volume
from sam2_3dmed_jax.inference.zoom import segment_with_zoom
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, clip_ranges
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.zoom import OFF, Zoom


def segment_objects(
    predictor: VolumePredictor, volume: Volume, prompts: ObjectPrompts, zoom: Zoom = OFF
) -> Segmentation:
    """Segment all objects, in one session unless there is a zoom on each; without prompts, the label map is empty.

    Where objects overlap, the larger logit wins, but nested objects are painted over those around them.
    """
    if not prompts:
        depth = len(volume.array)
        scores = np.zeros((0, depth), np.float32)
        nothing = Result((), np.zeros((0, depth, 0, 0), np.float32), scores, scores)
        return Segmentation(np.zeros(volume.array.shape, np.uint16), nothing)
    every_prompt = [prompt for target_prompts in prompts.values() for prompt in target_prompts]
    segmentation = segment_with_zoom(predictor, volume, every_prompt, zoom)
    paint_nested_objects(segmentation, prompts)
    return segmentation


def paint_nested_objects(segmentation: Segmentation, prompts: ObjectPrompts) -> np.ndarray:
    """Paint nested objects over those around them, in place, and return the label map."""
    labels = segmentation.labels
    around = {
        nested[0].object_id: [outer[0].object_id for target, outer in prompts.items() if set(values) < set(target)]
        for values, nested in prompts.items()
    }
    if any(around.values()):
        masks = {value: mask for value, mask in segmentation.object_masks() if around[value]}
        for value in (value for value in around if value in masks):  # the innermost last
            labels[masks[value] & np.isin(labels, around[value])] = value
    return labels


def segment_clips(
    predictor: VolumePredictor, volume: Volume, reference: np.ndarray, prompts: ObjectPrompts, clip_slices: int
) -> np.ndarray:
    """Segment each object alone, one clip of its extent after another; later clips are painted over earlier ones.

    Args:
        predictor: the model.
        volume: the scan.
        reference: integers `[D, H, W]`, whose extent the clips divide.
        prompts: of each object.
        clip_slices: slices of a clip.

    Returns:
        Label map uint16 `[D, H, W]`.
    """
    labels = np.zeros(volume.array.shape, np.uint16)
    for start, stop, clip_prompts in clip_sessions(reference, prompts, clip_slices):
        clip = segment_volume(predictor, _slices(volume, start, stop), clip_prompts).labels
        labels[start:stop][clip > 0] = clip[clip > 0]
    return labels


def clip_sessions(
    reference: np.ndarray, prompts: ObjectPrompts, clip_slices: int
) -> Iterator[tuple[int, int, list[VoxelPrompt]]]:
    """Yield the first and past-the-last slice of each clip of each object, and its prompts with slices of the clip."""
    for target, target_prompts in prompts.items():
        for start, stop in clip_ranges(np.isin(reference, target), clip_slices):
            inside = [prompt for prompt in target_prompts if start <= prompt.slice < stop]
            if inside:
                yield start, stop, [VoxelPrompt(p.object_id, p.slice - start, p.points, p.labels) for p in inside]


def _slices(volume: Volume, start: int, stop: int) -> Volume:
    """Return some slices of a volume as a volume."""
    shift = np.eye(4)
    shift[0, 3] = start
    _, H, W = volume.array.shape
    grid = Grid((stop - start, H, W), volume.canonical_affine @ shift, volume.grid.source, is_canonical=True)
    return Volume(volume.array[start:stop], grid, volume.modality)
