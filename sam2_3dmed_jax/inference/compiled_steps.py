"""The compiled parts of propagation: prompted slices, and a block of slices walked by one `lax.scan`.

Rows are objects, or objects times directions. A block has a fixed number of steps and the memory bank a fixed size,
so volumes of any depth use one compilation; steps that a row does not take leave its memory as it is.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sam2_3dmed_jax.sam2.memory_bank import MemoryBank, Recent
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures, SliceOutput
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.sam2.prompt_encoder import Prompts, no_prompts


class SliceResult(NamedTuple):
    """What stays of R rows on one slice each (a leading axis of steps is added by a walk)."""

    mask_logits: jax.Array  # float32 [R, S/4, S/4]
    object_score_logits: jax.Array  # float32 [R]
    memory: jax.Array  # [R, N, mem_dim]
    pointer: jax.Array  # [R, C]


class Steps(NamedTuple):
    """The steps of a block: T steps, G directions, R = G x K rows."""

    features: SliceFeatures  # each [T, G, ...]
    context: jax.Array  # [T, G, C]
    on: jax.Array  # int32 [T, R]: the slice that a row is on
    active: jax.Array  # bool [T, R]: whether the row is walked there


def add_context(embedding: jax.Array, context: jax.Array) -> jax.Array:
    """Add the slice context `[R, C]` to all cells of `[R, h, w, C]`."""
    return embedding + context[:, None, None].astype(embedding.dtype)


def track_slice(
    model: SAM2,
    bank: MemoryBank,
    features: SliceFeatures,
    context: jax.Array,
    index: jax.Array,
    direction: jax.Array,
    depth: jax.Array | int,
    prompts: Prompts,
    by_stability: bool = False,
) -> SliceOutput:
    """Decode R rows on a slice each from memory; `features` and `context [G, C]` are each of R / G neighbours."""
    memory = model.recall(bank, index, direction, depth)
    conditioned = model.condition_on_memory(add_context(features.embedding, context), memory)
    features = jax.tree.map(lambda x: jnp.repeat(x, index.shape[0] // x.shape[0], axis=0), features)
    return model.decode(conditioned, features, prompts, by_stability=by_stability)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def walk_block(
    graphdef: nnx.GraphDef,
    weights: Weights,
    bank: MemoryBank,
    steps: Steps,
    direction: jax.Array,
    depth: jax.Array,
) -> tuple[MemoryBank, SliceResult]:
    """Walk a block of slices without prompts.

    Args:
        graphdef: the model's structure.
        weights: its weights.
        bank: memories of the R rows before the block.
        steps: what happens at each step.
        direction: int32 `[R]`, +1 or -1.
        depth: int32, slices of the volume.

    Returns:
        The bank after the block, and results with leading axis T; rows that were not active hold noise. A step on
        which no row is active is not computed.
    """
    model = merge(graphdef, weights)
    rows = direction.shape[0]

    def walk(bank: MemoryBank, at: Steps) -> tuple[MemoryBank, SliceResult]:
        out = track_slice(model, bank, at.features, at.context, at.on, direction, depth, no_prompts(rows))
        memory = model.encode_memory(at.features.embedding, out.mask_logits, out.object_score_logits)
        recent: Recent = bank.recent.write(at.on, at.active, memory, out.pointer)
        bank = MemoryBank(bank.prompted_memory, bank.prompted_pointer, bank.prompted_slice, recent)
        return bank, SliceResult(out.mask_logits, out.object_score_logits, memory, out.pointer)

    first = jax.tree.map(lambda x: x[0], steps)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(walk, bank, first)[1])

    def step(bank: MemoryBank, at: Steps) -> tuple[MemoryBank, SliceResult]:
        return lax.cond(at.active.any(), walk, lambda bank, _: (bank, nothing), bank, at)

    return lax.scan(step, bank, steps)


@partial(jax.jit, static_argnums=(0, 5))
def prompt_slices(
    graphdef: nnx.GraphDef,
    weights: Weights,
    features: SliceFeatures,
    context: jax.Array,
    prompts: Prompts,
    postprocessing: bool,
) -> SliceResult:
    """Segment R first-prompted slices by points and boxes, without memory."""
    model = merge(graphdef, weights)
    conditioned = model.without_memory(add_context(features.embedding, context))
    out = model.decode(conditioned, features, prompts, by_stability=postprocessing)
    return _remember(model, features, out, postprocessing)


@partial(jax.jit, static_argnums=(0, 8))
def correct_slices(
    graphdef: nnx.GraphDef,
    weights: Weights,
    bank: MemoryBank,
    features: SliceFeatures,
    context: jax.Array,
    index: jax.Array,
    direction: jax.Array,
    depth: jax.Array,
    postprocessing: bool,
    prompts: Prompts,
) -> SliceResult:
    """Segment R slices that were tracked before, by points and boxes on top of their memory and earlier logits."""
    model = merge(graphdef, weights)
    out = track_slice(model, bank, features, context, index, direction, depth, prompts, postprocessing)
    return _remember(model, features, out, postprocessing)


@partial(jax.jit, static_argnums=(0, 4))
def mask_slices(
    graphdef: nnx.GraphDef, weights: Weights, features: SliceFeatures, masks: jax.Array, postprocessing: bool
) -> SliceResult:
    """Take R mask prompts `[R, S, S]` in {0, 1} as the outputs of their slices."""
    model = merge(graphdef, weights)
    return _remember(model, features, model.take_mask(features, masks), postprocessing)


def _remember(model: SAM2, features: SliceFeatures, out: SliceOutput, binarise: bool) -> SliceResult:
    memory = model.encode_memory(features.embedding, out.mask_logits, out.object_score_logits, binarise=binarise)
    return SliceResult(out.mask_logits, out.object_score_logits, memory, out.pointer)
