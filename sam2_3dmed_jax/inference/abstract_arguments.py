"""Shapes of the arguments of the compiled propagation programs, for tracing without data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.inference.compiled_steps import Steps
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block, encoded_at_once
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank


def block_arguments(
    graphdef: nnx.GraphDef, weights: Any, sam2: Sam2Config, rows: int, prompted: int, dtype: Any
) -> tuple[jax.ShapeDtypeStruct, tuple[MemoryBank, Steps, Any, Any]]:
    """The shapes of what `encode_block` and `walk_block` take beside weights.

    Args:
        graphdef: the model's structure.
        weights: its weights, or their shapes.
        sam2: its architecture.
        rows: objects that are walked at once, in one direction.
        prompted: room for prompted slices in the memory bank.
        dtype: of memories.

    Returns:
        Images `[T, S, S, 3]`, and (bank, steps, direction, depth) of a walk.
    """
    size = sam2.image_size
    images = jax.ShapeDtypeStruct((encoded_at_once(size), size, size, 3), jnp.float32)

    def block(weights: Any) -> tuple:
        images = jnp.zeros((BLOCK, size, size, 3))
        features, _ = encode_block(graphdef, weights, images)
        steps = Steps(
            features=jax.tree.map(lambda x: x[:, None], features),
            context=jnp.zeros((BLOCK, 1, sam2.d_model)),
            on=jnp.zeros((BLOCK, rows), jnp.int32),
            active=jnp.zeros((BLOCK, rows), bool),
        )
        bank = MemoryBank.empty(sam2, rows, prompted, dtype)
        return bank, steps, jnp.zeros(rows, jnp.int32), jnp.int32(0)

    return images, jax.eval_shape(block, weights)
