"""Shapes of the arguments of the compiled propagation programs, for tracing without data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.inference.compiled_programs import PropagationSteps
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block, slices_per_encoding
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank

PropagationArguments = tuple[MemoryBank, PropagationSteps, jax.Array, jax.Array]  # bank, steps, direction, depth


def abstract_array(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of an array without data."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def block_arguments(
    graphdef: nnx.GraphDef[Any],
    weights: Any,
    sam2: Sam2Config,
    rows: int,
    prompted: int,
    dtype: DTypeLike,
) -> tuple[jax.ShapeDtypeStruct, PropagationArguments]:
    """Return the shapes of the arguments of `encode_block` and `propagate_block`, except for the weights.

    Args:
        graphdef: the structure of the model.
        weights: its weights, or their shapes.
        sam2: its architecture.
        rows: objects that are propagated at once, in one direction.
        prompted: number of prompted slices that the memory bank has room for.
        dtype: of memories.

    Returns:
        The images `[T, S, S, 3]` of one call of `encode_block`, and (bank, steps, direction, depth) of a call of
        `propagate_block`.
    """
    size = sam2.image_size
    images = abstract_array((slices_per_encoding(size), size, size, 3), jnp.float32)

    def propagation_arguments(weights: Any) -> PropagationArguments:
        images = jnp.zeros((BLOCK, size, size, 3))
        features, _ = encode_block(graphdef, weights, images)
        steps = PropagationSteps(
            features=jax.tree.map(lambda x: x[:, None], features),
            context=jnp.zeros((BLOCK, 1, sam2.d_model)),
            slice_index=jnp.zeros((BLOCK, rows), jnp.int32),
            active=jnp.zeros((BLOCK, rows), bool),
        )
        bank = MemoryBank.empty(sam2, rows, prompted, dtype)
        return bank, steps, jnp.zeros(rows, jnp.int32), jnp.int32(0)

    return images, jax.eval_shape(propagation_arguments, weights)
