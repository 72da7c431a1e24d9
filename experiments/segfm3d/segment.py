"""Segmentation of a case of the challenge: the prompts are replayed class by class, in the order of their steps.

The first prompt of a class is its box on the slice `z_mid`, or its first foreground click. Each further click corrects
the masks of the clicks before it, as in an interactive session, and the volume is propagated again. The classes share
the features of the image. Each has its own session, so that the programs that are compiled for one object serve every
case, and memory does not grow with the number of classes. Slices beyond `z_min` and `z_max` of a box are empty.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from experiments.segfm3d.case import Case, ClassBox, Click
from experiments.segfm3d.feature_cache import FeatureCache
from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.label_maps import label_map
from sam2_3dmed_jax.inference.predictor import Session, VolumePredictor
from sam2_3dmed_jax.inference.segment import to_slices
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.model import NO_OBJECT_LOGIT
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices

# `imgs` holds the windowed intensities of any modality as 0 to 255: this window maps them to [0, 1], in place of the
# window that the checkpoint applies to the values of a scanner.
GREY_WINDOW = PreprocessingConfig(window="127.5,255")


class Segmenter:
    """Segments cases with one model."""

    def __init__(self, predictor: VolumePredictor, cache: FeatureCache | None = None):
        """Wrap a predictor; `cache` keeps the features of images for later calls."""
        self._predictor = predictor
        self._cache = cache

    def segment(self, case: Case, progress: Progress | None = None) -> np.ndarray:
        """Return the label map of a case, uint8 `[D, H, W]`: class i + 1 from `boxes[i]` and `clicks[i]`.

        Where classes overlap, the one with the larger logit counts. A class without a box and without a foreground
        click is empty.
        """
        size = self._predictor.model.config.image_size
        depth, *shape = case.images.shape
        store = self._features(case, size, progress)
        # In a temporary file beyond 4 GiB.
        logits = HostArrays().zeros((case.classes, depth, size // 4, size // 4), np.float32)
        for number in range(case.classes):
            logits[number] = NO_OBJECT_LOGIT
            box = case.boxes[number] if case.boxes else None
            session = Session(self._predictor, store, progress)
            for prompt in _steps(box, case.clicks[number] if case.clicks else ()):
                session.add(to_slices([prompt], (shape[0], shape[1]), size))
                (result,) = session.result().mask_logits
                inside = slice(box.z_min, box.z_max + 1) if box else slice(None)
                logits[number, inside] = result[inside]
        return label_map(logits, range(1, case.classes + 1), (shape[0], shape[1])).astype(np.uint8)

    def _features(self, case: Case, size: int, progress: Progress | None) -> FeatureStore:
        """Return the features of the image, from the cache if it has them."""
        dz, dy, dx = case.spacing
        affine = np.array([[0, 0, -dx, 0], [0, -dy, 0, 0], [dz, 0, 0, 0], [0, 0, 0, 1.0]])
        # The array is in canonical order; it stays uint8, as it is uploaded.
        volume = Volume(case.images, Grid(case.images.shape, affine, case.name, is_canonical=True))
        slices = PreparedSlices(volume, GREY_WINDOW, size)
        if self._cache:
            return self._cache.encoded(self._predictor, slices, progress)
        return self._predictor.encode(slices, progress)


def _steps(box: ClassBox | None, clicks: tuple[Click, ...]) -> Iterator[VoxelPrompt]:
    """Yield the prompts of a class in the order in which they are replayed.

    Without a box, clicks outside have nothing to correct before the first click inside, which therefore comes first.
    """
    if box:
        corners = (box.z_mid_x_min, box.z_mid_y_min, box.z_mid_x_max, box.z_mid_y_max)
        yield VoxelPrompt(1, box.z_mid, box=tuple(map(float, corners)))
        ordered = clicks
    else:
        first = next((at for at, click in enumerate(clicks) if click.inside), None)
        ordered = () if first is None else (clicks[first], *clicks[:first], *clicks[first + 1 :])
    for click in ordered:
        z, y, x = click.voxel
        yield VoxelPrompt(1, z, ((float(x), float(y)),), (int(click.inside),))
