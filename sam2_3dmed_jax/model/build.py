"""Construction of a model from its configuration: structure, abstract weights and random weights.

A configuration describes SAM 2, SAM2-3dMed (SAM 2 with SRPP or BD) or a U-Net.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sam2_3dmed_jax.config import AnyModelConfig, ModelConfig, Sam2Config, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.sam2.initializers import SAM2_INITIALIZERS, constant, initial_weights
from sam2_3dmed_jax.sam2.memory_selection import memory_rule
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.unet.network import UNET_INITIALIZERS, UNet

# Zero, so that an untrained SAM2-3dMed equals SAM 2.
ZERO_INITIALIZERS = ((r"(slice_position\.to_features|boundary\.to_mask)\.kernel$", constant(0.0)),)


def architecture(config: ModelConfig) -> Sam2Config:
    """Return the architecture of a model, without the modules of SAM2-3dMed.

    Raises:
        UserError: an unknown preset or memory selection, or a size that does not fit.
    """
    memory_rule(config.memory_selection)
    return dataclasses.replace(
        preset_config(config.preset, config.image_size),
        compute_dtype=config.compute_dtype,
        memory_selection=config.memory_selection,
    )


def build_model(config: AnyModelConfig) -> SAM2 | UNet:
    """Return a model's structure, with all parameters zero.

    Raises:
        UserError: an unknown preset or memory selection, a size that does not fit, or settings that exclude each other.
    """
    if isinstance(config, UNetConfig):
        return UNet(config, jnp.dtype(config.compute_dtype))
    sam2 = architecture(config)
    if config.srpp and config.slice_position.memory and config.slice_position.to_mask:
        raise UserError(
            "model.slice_position.memory: memory-conditioned features are known only after a slice is segmented, so "
            "their context cannot be added to its mask features; set model.slice_position.to_mask to false"
        )
    if config.srpp or config.bd:
        srpp, bd = config.slice_position if config.srpp else None, config.boundary if config.bd else None
        return SAM2With3DMed(sam2, srpp, bd)
    return SAM2(sam2)


def abstract_model(
    config: AnyModelConfig, encoder: bool = True
) -> tuple[nnx.GraphDef[Any], dict[str, jax.ShapeDtypeStruct]]:
    """Return a model's structure and the shapes of its weights by path, without computing any weights.

    Args:
        config: the model's configuration.
        encoder: if False, leave out `encode_image` and its weights (`image_encoder`, `conv_s0`, `conv_s1`), for a model
            that takes stored features instead of slices.

    Raises:
        UserError: as `build_model`.
    """
    graphdef, shapes = _abstract_model(config, encoder)
    return graphdef, dict(shapes)


@lru_cache(maxsize=8)  # Loading a checkpoint needs it twice, and building takes the better part of a second.
def _abstract_model(config: AnyModelConfig, encoder: bool) -> tuple[nnx.GraphDef[Any], dict[str, jax.ShapeDtypeStruct]]:
    model: Any = nnx.eval_shape(lambda: build_model(config))
    if not encoder:
        del model.image_encoder, model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1
    graphdef, state = nnx.split(model)
    return graphdef, {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def random_weights(config: AnyModelConfig, seed: int) -> Weights:
    """Return the initial weights of a model by path, float32.

    Raises:
        UserError: as `build_model`.
    """
    initializers = (*ZERO_INITIALIZERS, *UNET_INITIALIZERS, *SAM2_INITIALIZERS)
    return initial_weights(abstract_model(config)[1], seed, initializers)
