"""SAM2-3dMed: SAM 2 with slice relative position prediction (SRPP) and boundary detection (BD), each optional.

Both modules start with zero-initialised projections, so an untrained SAM2-3dMed predicts the same masks as SAM 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.config import BdConfig, Sam2Config, SrppConfig
from sam2_3dmed_jax.model.boundary import Boundary
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.prompt_encoder import PromptTokens


class SAM2With3DMed(SAM2):
    """SAM 2 with a slice context (SRPP), a boundary branch that refines its masks (BD), or both."""

    def __init__(self, config: Sam2Config, srpp: SrppConfig | None, bd: BdConfig | None):
        super().__init__(config)
        dtype = jnp.dtype(config.compute_dtype)
        self.slice_position = SlicePosition(srpp, config.d_model, dtype=dtype) if srpp else None
        self.boundary = Boundary(bd, config.d_model, dtype=dtype) if bd else None

    def candidates(self, conditioned: jax.Array, features: SliceFeatures, prompts: PromptTokens) -> MaskCandidates:
        """Return all mask candidates, refined by the boundary branch if the model has one."""
        boundary = self.boundary
        if boundary is None:
            return super().candidates(conditioned, features, prompts)
        return self.decode_candidates(conditioned, features, prompts, lambda objects: boundary(objects, features))
