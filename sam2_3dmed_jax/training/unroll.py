"""Unrolled forward pass of training: a batch of clips is encoded at once and propagated by one scan over its D slices.

A row is an object of a clip; R = B x K. The steps are those of inference: a row is decoded from its prompt on its
prompted slice and from its memory afterwards, and its memory holds the chosen mask, gated by the object score. Before
its prompted slice a row has neither memory nor loss.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.config import Remat
from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.model.slice_position import SlicePosition, add_context
from sam2_3dmed_jax.runtime.imagenet import normalise
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.prompt_encoder import PromptTokens, no_prompts
from sam2_3dmed_jax.sam2.remat import remat
from sam2_3dmed_jax.sam2.rounded_weights import round_before_loop

Batch = dict[str, jax.Array]  # arrays with a leading axis B, before or after `data.render`

# Larger slices, in pixels per side, are encoded one per clip at a time: the first stages of the trunk would hold
# gigabytes for all D slices, and larger matrix products are no faster.
ENCODED_AT_ONCE = 256


class UnrolledClips(NamedTuple):
    """The outputs of a model for a batch of clips, which the losses compare with the targets."""

    candidates: MaskCandidates  # each field [D, R, ...]
    mask_logits: jax.Array  # float32 [D, R, S/4, S/4]: the chosen mask, gated by the object score as at inference
    multimask: jax.Array  # bool [D, R]
    positions: jax.Array | None  # P_pos [B, D, D], with SRPP


class ClipSlice(NamedTuple):
    """The inputs of one step for B clips; with a leading axis D, the inputs of all steps."""

    features: SliceFeatures  # each field [B, ...]
    context: jax.Array  # [B, C], added to the embedding
    valid: jax.Array  # bool [B]: not padding


class MemoryInput(NamedTuple):
    """The outputs of one step that the next step encodes as memories."""

    mask_logits: jax.Array  # float32 [R, S/4, S/4]
    object_score_logits: jax.Array  # float32 [R]
    pointer: jax.Array  # [R, C]
    confidence: jax.Array | None  # float32 [R], of a rule that ranks memories


class UnrollCarry(NamedTuple):
    """The carry of the scan over the slices of a clip."""

    bank: MemoryBank  # memories up to slice t - 2
    last: MemoryInput  # of slice t - 1


class SliceOutputs(NamedTuple):
    """The outputs of one step for R rows; stacked by the scan, the outputs of all steps."""

    candidates: MaskCandidates  # each field [R, ...]
    mask_logits: jax.Array  # float32 [R, S/4, S/4]
    multimask: jax.Array  # bool [R]
    slice_embeddings: jax.Array | None  # [R, dim], of features conditioned on memory, with `SrppConfig.memory`


@dataclass(frozen=True)
class Unroll:
    """What is the same at each step: the model, and the prompts of the rows."""

    model: SAM2
    objects: int  # K
    prompts: PromptTokens  # each field [R, ...]
    no_prompts: PromptTokens  # the same shapes, for rows that are not prompted on a slice
    prompt_step: jax.Array  # int32 [R]
    object_valid: jax.Array  # bool [R]
    direction: jax.Array  # int32 [R]: all +1, because slices are counted in the direction of propagation
    memory_srpp: SlicePosition | None  # the SRPP module if it reads features conditioned on memory

    def live_and_prompted(self, t: jax.Array, now: ClipSlice) -> tuple[jax.Array, jax.Array]:
        """Return the rows with a valid slice and object at step t, and those prompted there; bool `[R]` each."""
        live = jnp.repeat(now.valid, self.objects) & self.object_valid
        return live, (self.prompt_step == t) & live

    def without_memory(self, embedding: jax.Array) -> jax.Array:
        """Return the features that prompted rows are decoded from, `[B, h, w, C]` to `[R, h, w, C]`."""
        return jnp.repeat(self.model.without_memory(embedding), self.objects, axis=0)


def propagated_slices(batch: Batch) -> jax.Array:
    """Return where a row has an output, bool `[D, R]`: on valid slices from its prompt on, if its object is valid."""
    valid, start = batch["slice_valid"], batch["prompt_step"]
    begun = jnp.arange(valid.shape[1])[None, :, None] >= start[:, None, :]  # [B, D, K]
    propagated = begun & valid[:, :, None] & batch["object_valid"][:, None, :]
    return jnp.moveaxis(propagated, 1, 0).reshape(valid.shape[1], -1)


def clip_features(model: SAM2, slices: jax.Array, remat_trunk: Remat = "none") -> SliceFeatures:
    """Encode clips `[B, D, S, S]` in [0, 1]; features have leading axes `[D, B]`."""
    b, d, size, _ = slices.shape
    if size <= ENCODED_AT_ONCE:
        features = model.encode_image(normalise(slices.reshape(b * d, size, size)), remat_trunk)
        return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(b, d, *x.shape[1:]), 1, 0), features)
    rounded_model = round_before_loop(model)
    return lax.map(
        lambda slice_: rounded_model().encode_image(normalise(slice_), remat_trunk), jnp.moveaxis(slices, 1, 0)
    )


def unroll_clips(model: SAM2, batch: Batch, remat_trunk: Remat = "none", remat_slices: Remat = "none") -> UnrolledClips:
    """Propagate the prompts of a batch of clips.

    Args:
        model: SAM 2, or SAM2-3dMed.
        batch: fields of `data.clips.RenderedClip` with a leading axis B. The features of the slices (the fields of
            `SliceFeatures`, `[B, D, ...]`) may replace `slices`.
        remat_trunk: rematerialisation of each block of the trunk.
        remat_slices: rematerialisation of each step of the propagation.
    """
    b, d, k = batch["masks"].shape[:3]
    if "slices" in batch:
        features = clip_features(model, batch["slices"], remat_trunk)
    else:
        dtype = jnp.dtype(model.config.compute_dtype)
        features = SliceFeatures(*(jnp.moveaxis(batch[name], 1, 0).astype(dtype) for name in SliceFeatures._fields))

    srpp = model.slice_position if isinstance(model, SAM2With3DMed) else None
    context = jnp.zeros((d, b, model.config.d_model))
    positions = None
    if srpp is not None and not srpp.config.memory:
        embeddings = jnp.moveaxis(srpp.embed(features.embedding), 0, 1)
        shared = srpp.context(embeddings, batch["slice_valid"], batch["slice_index"])
        positions = srpp.positions(shared)
        if (to_mask := srpp.to_mask(shared)) is not None:
            context = jnp.moveaxis(to_mask, 1, 0)

    unroll = _unroll(model, batch, srpp if srpp is not None and srpp.config.memory else None)
    # Between the prompted slice and the last slice, at most D - 2 slices are remembered.
    bank = MemoryBank.empty(model.config, b * k, 1, jnp.dtype(model.config.compute_dtype), max_recent=max(d - 2, 1))
    slices = ClipSlice(features, context, jnp.moveaxis(batch["slice_valid"], 1, 0))
    before, now = jax.tree.map(lambda x: x[:-1], slices), jax.tree.map(lambda x: x[1:], slices)
    # The first step has no memory and is not in the scan: with a condition inside the scan, each step would save the
    # weights for the backward pass.
    first_step = remat(functools.partial(prompted_step, unroll), remat_slices)
    rounded_model = round_before_loop(model)

    def propagate(
        carry: UnrollCarry, inputs: tuple[jax.Array, ClipSlice, ClipSlice]
    ) -> tuple[UnrollCarry, SliceOutputs]:
        return propagation_step(replace(unroll, model=rounded_model()), carry, inputs)

    next_step = remat(propagate, remat_slices)
    last, first = first_step(jax.tree.map(lambda x: x[0], slices))
    _, rest = lax.scan(next_step, UnrollCarry(bank, last), (jnp.arange(1, d), before, now))
    outputs = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)
    if unroll.memory_srpp is not None:
        embeddings = _mean_over_objects(outputs.slice_embeddings, propagated_slices(batch), k)
        shared = unroll.memory_srpp.context(embeddings, batch["slice_valid"], batch["slice_index"])
        positions = unroll.memory_srpp.positions(shared)
    return UnrolledClips(outputs.candidates, outputs.mask_logits, outputs.multimask, positions)


def prompted_step(unroll: Unroll, now: ClipSlice) -> tuple[MemoryInput, SliceOutputs]:
    """Decode the first slice of each clip, without memory."""
    _, prompted = unroll.live_and_prompted(jnp.int32(0), now)
    embedding = add_context(now.features.embedding, now.context)
    return _decode(unroll, now, unroll.without_memory(embedding), prompted)


def propagation_step(
    unroll: Unroll, carry: UnrollCarry, inputs: tuple[jax.Array, ClipSlice, ClipSlice]
) -> tuple[UnrollCarry, SliceOutputs]:
    """Remember slice t - 1 and decode slice t from memory, or without it where a row is prompted.

    Args:
        unroll: what is the same at each step.
        carry: memories and the outputs of slice t - 1.
        inputs: t, slice t - 1 and slice t.
    """
    t, before, now = inputs
    bank = _remember(unroll, carry, t - 1, before)
    _, prompted = unroll.live_and_prompted(t, now)
    embedding = add_context(now.features.embedding, now.context)
    # The temporal encoding of pointers is normalised as in every volume of 16 slices or more.
    depth = unroll.model.config.max_obj_ptrs
    index = jnp.full(unroll.prompt_step.shape, t, jnp.int32)
    memory = unroll.model.memory_tokens(bank, index, unroll.direction, depth)
    conditioned = jnp.where(
        prompted[:, None, None, None],
        unroll.without_memory(embedding),
        unroll.model.condition_on_memory(embedding, memory),
    )
    last, outputs = _decode(unroll, now, conditioned, prompted)
    return UnrollCarry(bank, last), outputs


def _unroll(model: SAM2, batch: Batch, memory_srpp: SlicePosition | None) -> Unroll:
    b, _, k = batch["masks"].shape[:3]
    rows = b * k
    prompts = PromptTokens(
        coords=batch["coords"].reshape(rows, -1, 2),
        labels=batch["point_labels"].reshape(rows, -1),
        valid=batch["token_valid"].reshape(rows, -1),
        multimask=batch["multimask"].reshape(rows),
    )
    return Unroll(
        model=model,
        objects=k,
        prompts=prompts,
        no_prompts=no_prompts(rows, prompts.labels.shape[1]),
        prompt_step=batch["prompt_step"].reshape(rows),
        object_valid=batch["object_valid"].reshape(rows),
        direction=jnp.ones(rows, jnp.int32),
        memory_srpp=memory_srpp,
    )


def _remember(unroll: Unroll, carry: UnrollCarry, t: jax.Array, now: ClipSlice) -> MemoryBank:
    """Encode the outputs of slice t as memories.

    The step that first reads a memory encodes it, so that the memory of the last slice, which no step reads, is not
    encoded.
    """
    bank, last = carry
    live, prompted = unroll.live_and_prompted(t, now)
    encoded = unroll.model.encode_memory(now.features.embedding, last.mask_logits, last.object_score_logits)
    rows = unroll.prompt_step.shape
    index = jnp.full(rows, t, jnp.int32)
    bank = bank.write_prompted(jnp.zeros(rows, jnp.int32), index, prompted, encoded, last.pointer)
    return bank.write_recent(index, live & (unroll.prompt_step < t), encoded, last.pointer, last.confidence)


def _decode(
    unroll: Unroll, now: ClipSlice, conditioned: jax.Array, prompted: jax.Array
) -> tuple[MemoryInput, SliceOutputs]:
    """Decode a slice from features `conditioned [R, h, w, C]`, with prompts where `prompted [R]`."""
    features = jax.tree.map(lambda x: jnp.repeat(x, unroll.objects, axis=0), now.features)
    prompts = jax.tree.map(
        lambda prompt, none: jnp.where(prompted.reshape(-1, *[1] * (prompt.ndim - 1)), prompt, none),
        unroll.prompts,
        unroll.no_prompts,
    )
    out = unroll.model.decode(conditioned, features, prompts)
    outputs = SliceOutputs(
        candidates=out.candidates,
        mask_logits=out.mask_logits,
        multimask=prompts.multimask & unroll.model.config.multimask,
        slice_embeddings=unroll.memory_srpp.embed(conditioned) if unroll.memory_srpp is not None else None,
    )
    confidence = unroll.model.memory_confidence(out.predicted_iou, out.object_score_logits)
    return MemoryInput(out.mask_logits, out.object_score_logits, out.pointer, confidence), outputs


def _mean_over_objects(embeddings: jax.Array, propagated: jax.Array, k: int) -> jax.Array:
    """Return the mean slice embedding of the propagated objects of each slice, which remember different things.

    `embeddings [D, R, dim]` and `propagated` bool `[D, R]` to `[B, D, dim]`; zero on slices without such an object.
    """
    d, rows, dim = embeddings.shape
    counts = propagated.reshape(d, rows // k, k, 1)
    total = jnp.where(counts, embeddings.reshape(d, rows // k, k, dim), 0).sum(2)
    return jnp.moveaxis(total / jnp.maximum(counts.sum(2), 1).astype(total.dtype), 1, 0)
