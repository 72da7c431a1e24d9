"""Segmentation of a volume from prompts in voxels: a label map on the volume's grid, and one mask per object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.inference.label_maps import label_map, label_map_of_regions
from sam2_3dmed_jax.inference.predictor import Result, VolumePredictor
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.prompts.simulation import to_pixels
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices, resize_slices
from sam2_3dmed_jax.volume.zoom import RegionLogits


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map, and the logits that it is computed from."""

    labels: np.ndarray  # uint16 [D, H, W], object ids; where objects overlap, the one with the larger logit
    result: Result
    threshold: float = 0.0  # logits above it are inside

    def object_masks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each object id with the mask of the object, bool `[D, H, W]`; masks may overlap."""
        for object_id in self.result.object_ids:
            yield object_id, self.object_mask(object_id)

    def object_mask(self, object_id: int) -> np.ndarray:
        """Return the mask of one object, bool `[D, H, W]`, which is empty for an id without a mask."""
        _, height, width = self.labels.shape
        if (logits := self.result.logits_of(object_id)) is None:
            return np.zeros(self.labels.shape, bool)
        if isinstance(logits, RegionLogits):
            return label_map_of_regions([logits], [1], (height, width), self.threshold).astype(bool)
        return label_map(logits[None], [1], (height, width), self.threshold).astype(bool)


def segment_volume(
    predictor: VolumePredictor, volume: Volume, prompts: Sequence[VoxelPrompt], progress: Progress | None = None
) -> Segmentation:
    """Segment a volume with the preprocessing of the predictor's checkpoint.

    Raises:
        UserError: there are no prompts, or they do not fit the volume.
    """
    size = predictor.model.config.image_size
    shape = volume.array.shape[1:]
    slices = PreparedSlices(volume, predictor.model.info.preprocessing, size)
    result = predictor.predict(slices, to_slices(prompts, shape, size), progress)
    return label_result(result, shape)


def label_result(result: Result, shape: tuple[int, int], threshold: float = 0.0) -> Segmentation:
    """Return the label map of the result of a session.

    Args:
        result: of K objects.
        shape: (H, W), voxels of a slice.
        threshold: voxels with a larger logit are inside.
    """
    # Logits are interpolated, then thresholded: the threshold acts as the logit of the background.
    if result.zooms:
        regions = [RegionLogits(own, zoom.region) for own, zoom in zip(result.mask_logits, result.zooms, strict=True)]
        labels = label_map_of_regions(regions, result.object_ids, shape, threshold)
    else:
        labels = label_map(result.mask_logits, result.object_ids, shape, threshold)
    return Segmentation(labels, result, threshold)


def to_slices(prompts: Sequence[VoxelPrompt], shape: tuple[int, int], size: int) -> list[Prompt]:
    """Convert prompts from voxels of slices of `shape` (H, W) to pixels of the S x S slice, where S is `size`.

    They are ordered by object and slice, so that the last bits of a result do not depend on their order.

    Raises:
        UserError: prompts that cannot be combined on one slice.
    """
    ordered = sorted(merge_prompts(prompts), key=lambda prompt: (prompt.object_id, prompt.slice))
    return [_to_slice(prompt, shape, size) for prompt in ordered]


def _to_slice(prompt: VoxelPrompt, shape: tuple[int, int], size: int) -> Prompt:
    def pixels(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        # Rounding must not move a click on the border of a slice beyond the border.
        on_slice = np.clip(to_pixels(np.asarray(points, float), shape, size), -0.5, size - 0.5)
        return [(float(x), float(y)) for x, y in on_slice]

    box = None
    if prompt.box is not None:
        (x0, y0), (x1, y1) = pixels([prompt.box[:2], prompt.box[2:]])
        box = (x0, y0, x1, y1)
    mask = None
    if prompt.mask is not None:
        share = resize_slices(prompt.mask[None].astype(np.float32), size)[0]
        # A mask smaller than a pixel keeps the pixel that it fills most: an empty mask would mean "not on this slice".
        mask = (share >= min(0.5, float(share.max()))) & (share > 0)
    points = pixels(prompt.points) if prompt.points else ()
    return Prompt(prompt.object_id, prompt.slice, points, prompt.labels, box, mask)
