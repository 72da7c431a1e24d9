"""Batches of synthetic clips: bright discs on noise, with the shapes of an experiment."""

import numpy as np

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.case_reader import StoredSlices
from sam2_3dmed_jax.data.clips import clip_shapes
from sam2_3dmed_jax.data.warp import IDENTITY
from sam2_3dmed_jax.sam2.presets import preset_config


def random_batch(config: ExperimentConfig, seed: int) -> dict[str, np.ndarray]:
    """One batch `[B, ...]`; clips differ in the number of slices with the object, and one has a padding slice."""
    rng = np.random.default_rng(seed)
    size = preset_config(config.model.preset, config.model.image_size).image_size
    b, d, k = config.training.batch_size, config.data.slices, config.data.clips.objects
    shapes = clip_shapes(config.data, size, StoredSlices(size, size, resized=False))
    batch = {name: np.zeros((b, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    rows, columns = np.mgrid[:size, :size]
    batch["grey"][:] = rng.integers(0, 200, batch["grey"].shape)
    batch["window"][:] = 0, 1000
    batch["inverse_map"][:] = IDENTITY
    batch["intensity"][:] = 1, 0, 1, 0  # changes nothing
    for i in range(b):
        for j in range(k):
            centre = rng.uniform(size / 4, size * 3 / 4, 2)
            for t in range(d - (i % 2)):
                radius = size / 5 - t
                disc = (rows - centre[1]) ** 2 + (columns - centre[0]) ** 2 < radius**2
                batch["labels"][i, t] |= disc.astype(batch["labels"].dtype) << j
                batch["grey"][i, t] += (500 * disc).astype(np.int16)
            batch["coords"][i, j, 0] = centre
    batch["slice_index"][:] = batch["position_mm"][:] = np.arange(d)
    batch["slice_valid"][:] = True
    batch["slice_valid"][0, -1] = False
    batch["object_valid"][:] = True
    for first in ("", "further_"):
        if f"{first}coords" in batch:
            batch[f"{first}point_labels"][:] = (1, -1, -1, -1)
            batch[f"{first}token_valid"][..., :2] = True
            batch[f"{first}multimask"][:] = True
    if "further_step" in batch:
        batch["further_step"][:] = 1 + np.arange(batch["further_step"].shape[-1])
        batch["further_coords"][:] = batch["coords"][:, :, None]
    if "clicks" in batch:
        limit = batch["click_draw"].shape[-1]
        batch["clicks"][:] = rng.integers(limit + 1, size=batch["clicks"].shape)
        batch["click_draw"][:] = rng.choice([-1.0, 0.3, 0.8], batch["click_draw"].shape)
    if "corrected_step" in batch:
        batch["corrected_step"][:] = d - 1 - np.arange(batch["corrected_step"].shape[-1])
    return batch
