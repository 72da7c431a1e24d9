"""A sample of a dataset's clips, to look at: one of each of some cases, evenly spread over them."""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.clips import Clip, cut_clip
from sam2_3dmed_jax.data.prepared import PreparedDataset
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.errors import UserError


def sample_clips(
    dataset: PreparedDataset, config: DataConfig, image_size: int, count: int, seed: int
) -> tuple[list[Clip], list[str]]:
    """Clips as training cuts them, of at most `count` cases, and the ids of these cases.

    Raises:
        UserError: settings that do not fit the dataset, no case that holds a class to segment, or a damaged shard.
    """
    view = ModelView(dataset, config, image_size)
    cases = [case for case in dataset.cases if view.areas(case)]
    if not cases:
        raise UserError(f"{dataset.path}: no case holds a class to segment; check data.classes")
    chosen = np.unique(np.linspace(0, len(cases) - 1, count).round().astype(int)).tolist()
    clips = [cut_clip(view, cases[i], config, np.random.default_rng([seed, i])) for i in chosen]
    return clips, [cases[i].id for i in chosen]
