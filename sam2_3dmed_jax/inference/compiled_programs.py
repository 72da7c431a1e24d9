"""Compiled programs of propagation: prompted slices and corrections, and blocks of slices in one `lax.scan`.

A row is an object, or an object in one of the two directions. A block has a fixed number of steps and the memory bank
has a fixed size, so volumes of any depth share one compilation. A step in which a row is not active leaves the memory
of the row unchanged.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sam2_3dmed_jax.model.slice_position import add_context
from sam2_3dmed_jax.sam2.layers import repeat_per_object
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures, SliceOutput
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.sam2.prompt_encoder import PromptTokens, no_prompts
from sam2_3dmed_jax.sam2.rounded_weights import round_before_loop


class SliceResult(NamedTuple):
    """Results of R rows on one slice each; `propagate_block` adds a leading axis of steps."""

    mask_logits: jax.Array  # float32 [R, S/4, S/4]
    object_score_logits: jax.Array  # float32 [R]
    predicted_iou: jax.Array  # float32 [R], of the mask before the object score gates it
    memory: jax.Array  # [R, N, mem_dim]
    pointer: jax.Array  # [R, C]


class PropagationSteps(NamedTuple):
    """The steps of a block: T steps, G directions, R = G x K rows."""

    features: SliceFeatures  # each [T, G, ...]
    context: jax.Array  # [T, G, C]
    slice_index: jax.Array  # int32 [T, R]
    active: jax.Array  # bool [T, R]: False where a row is not propagated to its slice


class PromptedStep(NamedTuple):
    """The slices of R rows that are segmented from prompts, and the directions in which they were propagated."""

    slice_index: jax.Array  # int32 [R]
    direction: jax.Array  # int32 [R]: +1 or -1


def propagate_slice(
    model: SAM2, bank: MemoryBank, step: PropagationSteps, direction: jax.Array, depth: jax.Array
) -> SliceResult:
    """Segment R rows on one slice each, without prompts, from their memories.

    Args:
        model: the model.
        bank: memories of the R rows.
        step: one step, without the axis T.
        direction: int32 `[R]`, +1 or -1.
        depth: int32, slices of the volume.
    """
    rows = direction.shape[0]
    embedding = add_context(step.features.embedding, step.context)
    memory = model.memory_tokens(bank, step.slice_index, direction, depth)
    conditioned = model.condition_on_memory(embedding, memory)
    features = jax.tree.map(lambda x: repeat_per_object(x, rows), step.features)
    out = model.decode(conditioned, features, no_prompts(rows))
    new_memory = model.encode_memory(step.features.embedding, out.mask_logits, out.object_score_logits)
    return SliceResult(out.mask_logits, out.object_score_logits, out.predicted_iou, new_memory, out.pointer)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def propagate_block(
    graphdef: nnx.GraphDef[Any],
    weights: Weights,
    bank: MemoryBank,
    steps: PropagationSteps,
    direction: jax.Array,
    depth: jax.Array,
) -> tuple[MemoryBank, SliceResult]:
    """Propagate R rows through a block of slices without prompts.

    Args:
        graphdef: the structure of the model.
        weights: its weights.
        bank: memories of the R rows before the block.
        steps: the slices of the block.
        direction: int32 `[R]`, +1 or -1.
        depth: int32, slices of the volume.

    Returns:
        The bank after the block, and results with leading axis T. Results of inactive rows are meaningless. A step
        without active rows is not computed, except on GPUs (`block_lengths.py`).
    """
    rounded_model = round_before_loop(merge(graphdef, weights))

    def propagate(bank: MemoryBank, step: PropagationSteps) -> tuple[MemoryBank, SliceResult]:
        model = rounded_model()
        result = propagate_slice(model, bank, step, direction, depth)
        confidence = model.memory_confidence(result.predicted_iou, result.object_score_logits)
        return bank.write_recent(step.slice_index, step.active, result.memory, result.pointer, confidence), result

    def skip(bank: MemoryBank, step: PropagationSteps) -> tuple[MemoryBank, SliceResult]:
        return bank, _empty_result(bank, step.features)

    def propagate_if_active(bank: MemoryBank, step: PropagationSteps) -> tuple[MemoryBank, SliceResult]:
        after: tuple[MemoryBank, SliceResult] = lax.cond(_is_computed(step.active), propagate, skip, bank, step)
        return after

    return lax.scan(propagate_if_active, bank, steps)


def _empty_result(bank: MemoryBank, features: SliceFeatures) -> SliceResult:
    """Return zeros in the place of the results of the rows of a bank."""
    rows, _, cells, channels = bank.prompted_memory.shape
    _, height, width, _ = features.stride4.shape
    scores = jnp.zeros(rows)
    return SliceResult(
        mask_logits=jnp.zeros((rows, height, width)),
        object_score_logits=scores,
        predicted_iou=scores,
        memory=jnp.zeros((rows, cells, channels), bank.prompted_memory.dtype),
        pointer=jnp.zeros((rows, bank.prompted_pointer.shape[-1]), bank.prompted_pointer.dtype),
    )


@partial(jax.jit, donate_argnums=0)
def remember_slice(
    bank: MemoryBank,
    index: jax.Array,
    write: jax.Array,
    memory: jax.Array,
    pointer: jax.Array,
    confidence: jax.Array | None,
) -> MemoryBank:
    """Store a stored result of R rows in their banks, as `propagate_block` does; see `RecentMemories.write`."""
    return bank.write_recent(index, write, memory, pointer, confidence)


def _is_computed(active: jax.Array) -> jax.Array:
    """Return whether a step with `active [R]` rows is computed, for a condition that a GPU's program does not have.

    A condition on a GPU makes the host wait for the device in each step. There, this is a constant, which the compiler
    removes together with the branch that is never taken.
    """
    computed: jax.Array = lax.platform_dependent(
        active, cuda=_always, rocm=_always, default=lambda active: active.any()
    )
    return computed


def _always(active: jax.Array) -> jax.Array:
    return jnp.ones((), bool)


@partial(jax.jit, static_argnums=0)
def condition_slice(
    graphdef: nnx.GraphDef[Any],
    weights: Weights,
    bank: MemoryBank,
    embedding: jax.Array,
    context: jax.Array,
    step: PromptedStep,
    depth: jax.Array,
) -> jax.Array:
    """Return the features of R slices as their memories change them, before their correction.

    Args:
        graphdef: the structure of the model.
        weights: its weights.
        bank: memories of the R rows.
        embedding: `[R, h, w, C]`, of the R slices.
        context: `[R, C]`, slice context of the same slices.
        step: the slices and the directions in which they were propagated.
        depth: int32, slices of the volume.

    Returns:
        `[R, h, w, C]` in the dtype of the embedding.
    """
    model = merge(graphdef, weights)
    memory = model.memory_tokens(bank, step.slice_index, step.direction, depth)
    conditioned: jax.Array = model.condition_on_memory(add_context(embedding, context), memory)
    return conditioned.astype(embedding.dtype)


@partial(jax.jit, static_argnums=(0, 7))
def segment_from_points(
    graphdef: nnx.GraphDef[Any],
    weights: Weights,
    features: SliceFeatures,
    context: jax.Array,
    conditioned: jax.Array,
    is_conditioned: jax.Array,
    prompts: PromptTokens,
    postprocessing: bool,
) -> SliceResult:
    """Segment R slices by points and boxes: first prompts, or corrections that are conditioned on memories.

    Both are one program; a correction also runs `condition_slice` before it.

    Args:
        graphdef: the structure of the model.
        weights: its weights.
        features: of the R slices.
        context: `[R, C]`, slice context of the same slices.
        conditioned: `[R, h, w, C]`, of `condition_slice`; ignored for first prompts.
        is_conditioned: bool, whether the slices are decoded from it.
        prompts: of the R rows.
        postprocessing: see `predictor.VolumePredictor`.
    """
    model = merge(graphdef, weights)
    first = model.without_memory(add_context(features.embedding, context))
    return _segment(model, features, jnp.where(is_conditioned, conditioned, first), prompts, postprocessing)


def segment_first_prompt(
    model: SAM2, features: SliceFeatures, context: jax.Array, prompts: PromptTokens, postprocessing: bool
) -> SliceResult:
    """Segment R slices by points and boxes without memory, as `segment_from_points` does, to be traced alone."""
    first = model.without_memory(add_context(features.embedding, context))
    return _segment(model, features, first, prompts, postprocessing)


def _segment(
    model: SAM2, features: SliceFeatures, conditioned: jax.Array, prompts: PromptTokens, postprocessing: bool
) -> SliceResult:
    out = model.decode(conditioned, features, prompts, by_stability=postprocessing)
    return _with_memory(model, features, out, postprocessing)


@partial(jax.jit, static_argnums=(0, 4))
def segment_from_masks(
    graphdef: nnx.GraphDef[Any], weights: Weights, features: SliceFeatures, masks: jax.Array, postprocessing: bool
) -> SliceResult:
    """Return R mask prompts `[R, S, S]` in {0, 1} as the results of their slices."""
    model = merge(graphdef, weights)
    return _with_memory(model, features, model.use_mask_as_output(features, masks), postprocessing)


def _with_memory(model: SAM2, features: SliceFeatures, out: SliceOutput, binarise: bool) -> SliceResult:
    """Encode the memory of prompted slices."""
    memory = model.encode_memory(features.embedding, out.mask_logits, out.object_score_logits, binarise=binarise)
    return SliceResult(out.mask_logits, out.object_score_logits, out.predicted_iou, memory, out.pointer)
