"""SAM2-3dMed: SAM 2 with the two modules, each of which may be absent. Untrained, its masks equal SAM 2's."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sam2_3dmed_jax.config import BdConfig, ModelConfig, Sam2Config, SrppConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.boundary import Boundary
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.sam2.initializers import RULES, constant, initial_weights
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.sam2.prompt_encoder import Prompts
from sam2_3dmed_jax.unet.network import INITIAL, UNet


class SAM2With3DMed(SAM2):
    """SAM 2 whose masks can be refined by a boundary branch, and which may have a slice context (SRPP)."""

    def __init__(self, config: Sam2Config, srpp: SrppConfig | None, bd: BdConfig | None):
        super().__init__(config)
        dtype = jnp.dtype(config.compute_dtype)
        self.slice_position = SlicePosition(srpp, config.d_model, dtype=dtype) if srpp else None
        self.boundary = Boundary(bd, config.d_model, dtype=dtype) if bd else None

    def candidates(self, conditioned: jax.Array, features: SliceFeatures, prompts: Prompts) -> MaskCandidates:
        """All mask candidates, refined by the boundary branch where there is one."""
        boundary = self.boundary
        if boundary is None:
            return super().candidates(conditioned, features, prompts)
        return self.decode_candidates(conditioned, features, prompts, lambda objects: boundary(objects, features))


def build_model(config: ModelConfig) -> SAM2 | UNet:
    """A model's structure: SAM 2, or SAM2-3dMed when one of its modules is switched on; or a U-Net.

    Raises:
        UserError: an unknown preset or a size that does not fit it, or settings that do not go together.
    """
    if config.kind == "unet":
        return UNet(config.unet, jnp.dtype(config.compute_dtype))
    sam2 = dataclasses.replace(preset_config(config.preset, config.image_size), compute_dtype=config.compute_dtype)
    if config.srpp and config.slice_position.memory and config.slice_position.to_mask:
        raise UserError(
            "model.slice_position.memory: what the memory tells a slice is known only once it is segmented, so no "
            "context of it can enter the mask; set model.slice_position.to_mask to false"
        )
    if config.srpp or config.bd:
        srpp, bd = config.slice_position if config.srpp else None, config.boundary if config.bd else None
        return SAM2With3DMed(sam2, srpp, bd)
    return SAM2(sam2)


def abstract_model(config: ModelConfig, encoder: bool = True) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """A model's structure and the shapes of its weights by path, without computing any.

    Without `encoder` it is the structure that takes features in place of slices: `encode_image` and its weights
    (`image_encoder`, `conv_s0`, `conv_s1`) are not there.
    """
    model: Any = nnx.eval_shape(lambda: build_model(config))
    if not encoder:
        del model.image_encoder, model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1
    graphdef, state = nnx.split(model)
    return graphdef, {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


# Zero-initialised, so that an untrained SAM2-3dMed equals SAM 2.
ZERO_RULES = ((r"(slice_position\.to_features|boundary\.to_mask)\.kernel$", constant(0.0)),)


def random_weights(config: ModelConfig, seed: int) -> Weights:
    """Initial weights of a model."""
    return initial_weights(abstract_model(config)[1], seed, (*ZERO_RULES, *INITIAL, *RULES))
