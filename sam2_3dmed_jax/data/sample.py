"""Sample clips of a dataset for previews: one clip of each of some cases, evenly spread over the dataset."""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clips import RenderedClip, cut_clip
from sam2_3dmed_jax.data.prepared import PreparedDataset
from sam2_3dmed_jax.data.render import rendered_clip
from sam2_3dmed_jax.errors import UserError


def sample_clips(
    dataset: PreparedDataset, config: DataConfig, image_size: int, count: int, seed: int
) -> tuple[list[RenderedClip], list[str]]:
    """Cut and render clips of at most `count` cases as training does, and return them with the ids of the cases.

    Raises:
        UserError: the settings do not fit the dataset, no case contains a class to segment, or a shard is damaged.
    """
    reader = CaseReader(dataset, config, image_size)
    cases = [case for case in dataset.cases if reader.areas(case)]
    if not cases:
        raise UserError(f"{dataset.path}: no case contains a class to segment; check data.classes")
    chosen = np.unique(np.linspace(0, len(cases) - 1, count).round().astype(int)).tolist()
    clips = [cut_clip(reader, cases[i], config, np.random.default_rng([seed, i])) for i in chosen]
    rendered = [rendered_clip(clip, config.augmentation) for clip in clips]
    return rendered, [cases[i].id for i in chosen]
