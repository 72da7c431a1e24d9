"""From a volume and prompts in voxels to a label map on the volume's own grid, or to one mask an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.inference.feature_store import Progress
from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.prompts.simulation import to_pixels
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices, resize_slices, restore_logits


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map and what it was made of."""

    labels: np.ndarray  # uint16 [D, H, W], object ids; where objects overlap, the larger logit
    result: Result
    threshold: float = 0.0  # logits above it are inside

    def object_masks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Object ids, each with its own mask, bool `[D, H, W]`, whatever the other objects are; one at a time."""
        _, height, width = self.labels.shape
        for object_id, logits in zip(self.result.object_ids, self.result.mask_logits, strict=True):
            mask = np.empty(self.labels.shape, bool)
            for d in range(len(mask)):
                mask[d] = restore_logits(logits[d : d + 1], (height, width))[0] > self.threshold
            yield object_id, mask


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
    result = predictor.predict(slices, to_slices(prompts, shape, size), progress)
    return label_result(result, shape)


def label_result(result: Result, shape: tuple[int, int], threshold: float = 0.0) -> Segmentation:
    """The label map of a session's result, on slices of `shape` (H, W).

    Args:
        result: of K objects.
        shape: (H, W) in voxels.
        threshold: the logit above which a voxel is inside.
    """
    labels = np.zeros((result.mask_logits.shape[1], *shape), np.uint16)
    ids = np.array([0, *result.object_ids], np.uint16)
    for d in range(len(labels)):
        # Logits are interpolated, then thresholded: the threshold is the background's logit.
        logits = restore_logits(result.mask_logits[:, d], shape)
        best = np.concatenate([np.full((1, *shape), threshold, np.float32), logits]).argmax(0)
        labels[d] = ids[best]
    return Segmentation(labels, result, threshold)


def to_slices(prompts: Sequence[VoxelPrompt], shape: tuple[int, int], size: int) -> list[Prompt]:
    """Prompts in voxels of slices of `shape` (H, W) as prompts in pixels of the S x S slice; S is `size`.

    Raises:
        UserError: prompts that cannot stand on one slice together.
    """
    return [_to_slice(prompt, shape, size) for prompt in merge_prompts(prompts)]


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
