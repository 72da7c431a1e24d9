"""Clips as models are trained on them."""

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clips import RenderedClip, cut_clip
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.data.render import rendered_clip


def cut_and_render(
    reader: CaseReader, case: PreparedCase, config: DataConfig, rng: np.random.Generator
) -> RenderedClip:
    """Cut a clip on the host and compute its slices and masks."""
    return rendered_clip(cut_clip(reader, case, config, rng), config.augmentation)
