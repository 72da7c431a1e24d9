"""Unrolled forward pass of training: a batch of clips is encoded at once and propagated by one scan over its D slices.

A row is an object of a clip; R = B x K. The steps are those of inference: first a row's P prompted slices are decoded
without memory, then the other slices from its memory, which holds the chosen masks, gated by the object score. Before
its first prompted slice a row has neither recent memories nor losses. Clicks correct prompted slices, and up to Q
slices that the propagation reaches, which then are prompted slices for later ones (`corrections`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.config import Remat
from sam2_3dmed_jax.data.clip_prompts import NO_STEP
from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.model.slice_position import SlicePosition, add_context
from sam2_3dmed_jax.runtime.imagenet import normalise
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.prompt_encoder import PromptTokens, no_prompts
from sam2_3dmed_jax.sam2.remat import remat
from sam2_3dmed_jax.sam2.rounded_weights import round_before_loop
from sam2_3dmed_jax.training.corrections import ClickOutputs, Decoded, SliceClicks, correct, decoded_of

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
    # After each click on the P + Q slots of a row, each field [P + Q, C, R, ...]; None without clicks.
    clicks: ClickOutputs | None = None


class ClipSlice(NamedTuple):
    """The inputs of one step for B clips; with a leading axis D, the inputs of all steps."""

    features: SliceFeatures  # each field [B, ...]
    context: jax.Array  # [B, C], added to the embedding
    valid: jax.Array  # bool [B]: not padding


class UnrollCarry(NamedTuple):
    """The carry of the scan over the slices of a clip."""

    bank: MemoryBank  # memories up to slice t - 2
    last: Decoded  # of slice t - 1


class SliceOutputs(NamedTuple):
    """The outputs of one step for R rows; stacked by the scan, the outputs of all steps."""

    candidates: MaskCandidates  # each field [R, ...]
    mask_logits: jax.Array  # float32 [R, S/4, S/4]
    multimask: jax.Array  # bool [R]
    slice_embeddings: jax.Array | None  # [R, dim], of features conditioned on memory, with `SrppConfig.memory`


class Slots(NamedTuple):
    """The prompted and corrected slices of the rows, `[P + Q, R, ...]`: P prompted slots, then Q corrected ones."""

    step: jax.Array  # int32 [P + Q, R], or NO_STEP
    prompts: PromptTokens  # of the prompted slots, each field [P, R, ...]
    mask_prompt: jax.Array | None  # bool [R]: whether the first prompt is the mask
    clicks: jax.Array | None  # int32 [P + Q, R]
    click_draw: jax.Array | None  # float32 [P + Q, R, C]

    @property
    def prompted(self) -> int:
        """P."""
        return int(self.prompts.labels.shape[0])

    @property
    def corrected(self) -> int:
        """Q."""
        return int(self.step.shape[0]) - self.prompted


@dataclass(frozen=True)
class Unroll:
    """What is the same at each step: the model, and the prompts of the rows."""

    model: SAM2
    objects: int  # K
    slots: Slots
    masks: jax.Array  # uint8 [D, R, S, S]
    no_prompts: PromptTokens  # of slices that the propagation reaches
    object_valid: jax.Array  # bool [R]
    direction: jax.Array  # int32 [R]: all +1, because slices are counted in the direction of propagation
    memory_srpp: SlicePosition | None  # the SRPP module if it reads features conditioned on memory

    def slot_at(self, t: jax.Array, slots: slice) -> tuple[jax.Array, jax.Array]:
        """Return the slot of each row at step t, int32 `[R]`, and whether there is one, bool `[R]`."""
        here = self.slots.step[slots] == t
        return jnp.argmax(here, axis=0), here.any(0)


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


def prompted_and_corrected_slots(batch: Batch) -> Slots:
    """Return the slots of a batch; an object that is not valid has none."""
    valid = batch["object_valid"].reshape(-1)
    rows = valid.shape[0]

    def slot_first(further: jax.Array) -> jax.Array:
        """`[B, K, n, ...]` to `[n, R, ...]`."""
        return jnp.moveaxis(further.reshape(rows, *further.shape[2:]), 1, 0)

    def joined(first: str, further: str) -> jax.Array:
        one = batch[first].reshape(1, rows, *batch[first].shape[2:])
        return jnp.concatenate([one, slot_first(batch[further])]) if further in batch else one

    step = joined("prompt_step", "further_step")
    clicks = slot_first(batch["clicks"]) if "clicks" in batch else None
    if "corrected_step" in batch and clicks is not None:
        corrected = slot_first(batch["corrected_step"])
        # Without a click, and before the first prompt, nobody corrects a slice.
        used = (corrected > step[:1]) & (clicks[len(step) :] > 0)
        step = jnp.concatenate([step, jnp.where(used, corrected, NO_STEP)])
    return Slots(
        step=jnp.where(valid[None], step, NO_STEP),
        prompts=PromptTokens(
            coords=joined("coords", "further_coords"),
            labels=joined("point_labels", "further_point_labels"),
            valid=joined("token_valid", "further_token_valid"),
            multimask=joined("multimask", "further_multimask"),
        ),
        mask_prompt=batch["mask_prompt"].reshape(rows) & valid if "mask_prompt" in batch else None,
        clicks=None if clicks is None else jnp.where(step == NO_STEP, 0, clicks) * valid[None],
        click_draw=slot_first(batch["click_draw"]) if "click_draw" in batch else None,
    )


def prompted_by_mask(batch: Batch) -> jax.Array:
    """Return the slices whose output is the mask that they are prompted with, bool `[D, R]`."""
    slots, d = prompted_and_corrected_slots(batch), batch["masks"].shape[1]
    if slots.mask_prompt is None:
        return jnp.zeros((d, slots.step.shape[1]), bool)
    return (jnp.arange(d)[:, None] == slots.step[:1]) & slots.mask_prompt[None]


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

    rounded_model = round_before_loop(model)
    unroll = _unroll(rounded_model(), batch, srpp if srpp is not None and srpp.config.memory else None)
    slices = ClipSlice(features, context, jnp.moveaxis(batch["slice_valid"], 1, 0))
    bank, prompted, prompted_clicks = remat(functools.partial(segment_prompted, unroll), remat_slices)(slices)

    def propagate(
        carry: UnrollCarry, inputs: tuple[jax.Array, ClipSlice, ClipSlice]
    ) -> tuple[UnrollCarry, tuple[SliceOutputs, ClickOutputs | None]]:
        return propagation_step(replace(unroll, model=rounded_model()), carry, inputs)

    before, now = jax.tree.map(lambda x: x[:-1], slices), jax.tree.map(lambda x: x[1:], slices)
    # The first slice is prompted, or before the prompt: it is not propagated, and its memory is in the bank or nowhere.
    last = jax.tree.map(lambda x: jnp.zeros_like(x[0]), prompted.decoded)
    _, (propagated, corrected_clicks) = lax.scan(
        remat(propagate, remat_slices), UnrollCarry(bank, last), (jnp.arange(1, d), before, now)
    )
    outputs = _merged(unroll.slots, prompted.outputs, propagated)
    if unroll.memory_srpp is not None and outputs.slice_embeddings is not None:
        embeddings = _mean_over_objects(outputs.slice_embeddings, propagated_slices(batch), k)
        shared = unroll.memory_srpp.context(embeddings, batch["slice_valid"], batch["slice_index"])
        positions = unroll.memory_srpp.positions(shared)
    clicks = _click_outputs(unroll.slots, prompted_clicks, corrected_clicks)
    return UnrolledClips(outputs.candidates, outputs.mask_logits, outputs.multimask, positions, clicks)


class PromptedSlices(NamedTuple):
    """The results of the prompted slices of all rows, each field `[P, R, ...]`."""

    decoded: Decoded  # after the clicks
    outputs: SliceOutputs  # before them


def segment_prompted(unroll: Unroll, slices: ClipSlice) -> tuple[MemoryBank, PromptedSlices, ClickOutputs | None]:
    """Decode the P prompted slices of each row without memory, correct them by clicks, and remember them.

    Returns:
        The bank with room for all slots and the memories of the prompted ones, the results, and the outputs of the
        clicks, `[C, P, R, ...]`.
    """
    model, slots = unroll.model, unroll.slots
    p, rows = slots.prompted, slots.step.shape[1]
    d = slices.valid.shape[0]
    step = slots.step[:p].reshape(-1)  # [P x R]: each prompted slice is a row of one batch
    row = jnp.tile(jnp.arange(rows), p)
    at, clip = jnp.clip(step, 0), row // unroll.objects
    features = jax.tree.map(lambda x: x[at, clip], slices.features)
    prompts = jax.tree.map(lambda x: x.reshape(p * rows, *x.shape[2:]), slots.prompts)
    conditioned = model.without_memory(add_context(features.embedding, slices.context[at, clip]))
    out = model.decode(conditioned, features, prompts)
    outputs = SliceOutputs(
        candidates=out.candidates,
        mask_logits=out.mask_logits,
        multimask=prompts.multimask & model.config.multimask,
        slice_embeddings=unroll.memory_srpp.embed(conditioned) if unroll.memory_srpp is not None else None,
    )
    decoded = decoded_of(model, out)
    if slots.mask_prompt is not None:
        by_mask = jnp.arange(p * rows) < rows
        by_mask &= jnp.tile(slots.mask_prompt, p)
        decoded = _with_mask_prompts(model, features, decoded, by_mask, unroll.masks[at, row])
        outputs = outputs._replace(mask_logits=decoded.mask_logits)
    clicks = None
    if slots.clicks is not None and slots.click_draw is not None:
        placed = SliceClicks(
            slots.clicks[:p].reshape(-1),
            slots.click_draw[:p].reshape(p * rows, -1),
            unroll.masks[at, row] > 0,
        )
        decoded, click_outputs = correct(model, conditioned, features, prompts, decoded, placed)
        clicks = jax.tree.map(lambda x: x.reshape(x.shape[0], p, rows, *x.shape[2:]), click_outputs)

    # Between the prompted slice and the last slice, at most D - 2 slices are remembered.
    dtype, recent = jnp.dtype(model.config.compute_dtype), max(d - 2, 1)
    bank = MemoryBank.empty(model.config, rows, p + slots.corrected, dtype, max_recent=recent)
    memory = model.encode_memory(features.embedding, decoded.mask_logits, decoded.object_score_logits)
    decoded, outputs, memory = jax.tree.map(lambda x: x.reshape(p, rows, *x.shape[1:]), (decoded, outputs, memory))
    for slot in range(p):
        slot_step = slots.step[slot]
        which = jnp.full(rows, slot, jnp.int32)
        bank = bank.write_prompted(which, slot_step, slot_step != NO_STEP, memory[slot], decoded.pointer[slot])
    return bank, PromptedSlices(decoded, outputs), clicks


def propagation_step(
    unroll: Unroll, carry: UnrollCarry, inputs: tuple[jax.Array, ClipSlice, ClipSlice]
) -> tuple[UnrollCarry, tuple[SliceOutputs, ClickOutputs | None]]:
    """Remember slice t - 1, decode slice t from memory, and correct it where it is a corrected slice.

    Rows that are prompted on slice t have their result already, and this one is not used.

    Args:
        unroll: what is the same at each step.
        carry: memories and the outputs of slice t - 1.
        inputs: t, slice t - 1 and slice t.
    """
    t, before, now = inputs
    model = unroll.model
    bank = _remember(unroll, carry, t - 1, before)
    embedding = add_context(now.features.embedding, now.context)
    # The temporal encoding of pointers is normalised as in every volume of 16 slices or more.
    depth = model.config.max_obj_ptrs
    index = jnp.full(unroll.object_valid.shape, t, jnp.int32)
    conditioned = model.condition_on_memory(embedding, model.memory_tokens(bank, index, unroll.direction, depth))
    features = jax.tree.map(lambda x: jnp.repeat(x, unroll.objects, axis=0), now.features)
    out = model.decode(conditioned, features, unroll.no_prompts)
    outputs = SliceOutputs(
        candidates=out.candidates,
        mask_logits=out.mask_logits,
        multimask=unroll.no_prompts.multimask & model.config.multimask,
        slice_embeddings=unroll.memory_srpp.embed(conditioned) if unroll.memory_srpp is not None else None,
    )
    decoded = decoded_of(model, out)
    slots, clicks = unroll.slots, None
    if slots.corrected and slots.clicks is not None and slots.click_draw is not None:
        slot, here = unroll.slot_at(t, slice(slots.prompted, None))
        slot, rows = slot + slots.prompted, jnp.arange(len(slot))
        placed = SliceClicks(
            jnp.where(here, slots.clicks[slot, rows], 0), slots.click_draw[slot, rows], unroll.masks[t] > 0
        )
        decoded, clicks = correct(model, conditioned, features, unroll.no_prompts, decoded, placed)
    return UnrollCarry(bank, decoded), (outputs, clicks)


def _unroll(model: SAM2, batch: Batch, memory_srpp: SlicePosition | None) -> Unroll:
    b, d, k, size, _ = batch["masks"].shape
    rows = b * k
    return Unroll(
        model=model,
        objects=k,
        slots=prompted_and_corrected_slots(batch),
        masks=jnp.moveaxis(batch["masks"], 1, 0).reshape(d, rows, size, size),
        no_prompts=no_prompts(rows),
        object_valid=batch["object_valid"].reshape(rows),
        direction=jnp.ones(rows, jnp.int32),
        memory_srpp=memory_srpp,
    )


def _with_mask_prompts(
    model: SAM2, features: SliceFeatures, decoded: Decoded, by_mask: jax.Array, masks: jax.Array
) -> Decoded:
    """Replace the results of rows that are prompted `by_mask` bool `[R]` by their masks uint8 `[R, S, S]`."""

    @jax.checkpoint
    def replaced(decoded: Decoded) -> Decoded:
        out = model.use_mask_as_output(features, masks.astype(jnp.float32))
        new = decoded_of(model, out)
        return jax.tree.map(
            lambda x, y: jnp.where(by_mask.reshape(-1, *[1] * (x.ndim - 1)), x.astype(y.dtype), y), new, decoded
        )

    result: Decoded = lax.cond(by_mask.any(), replaced, lambda decoded: decoded, decoded)
    return result


def _remember(unroll: Unroll, carry: UnrollCarry, t: jax.Array, now: ClipSlice) -> MemoryBank:
    """Encode the outputs of slice t as memories, except on prompted slices, which the bank has.

    The step that first reads a memory encodes it, so that the memory of the last slice, which no step reads, is not
    encoded.
    """
    bank, last = carry
    slots = unroll.slots
    encoded = unroll.model.encode_memory(now.features.embedding, last.mask_logits, last.object_score_logits)
    index = jnp.full(unroll.object_valid.shape, t, jnp.int32)
    live = jnp.repeat(now.valid, unroll.objects) & unroll.object_valid
    slot, used = unroll.slot_at(t, slice(None))
    if slots.corrected:
        corrected = used & (slot >= slots.prompted) & live
        bank = bank.write_prompted(slot, index, corrected, encoded, last.pointer)
    recent = live & ~used & (slots.step[0] < t)
    return bank.write_recent(index, recent, encoded, last.pointer, last.confidence)


def _merged(slots: Slots, prompted: SliceOutputs, propagated: SliceOutputs) -> SliceOutputs:
    """Return the outputs of all slices `[D, R, ...]`: of prompted slices `[P, R, ...]`, and of the slices after 0."""
    p, rows = slots.prompted, jnp.arange(slots.step.shape[1])

    def merge_field(own: jax.Array, others: jax.Array) -> jax.Array:
        merged = jnp.concatenate([jnp.zeros_like(own[:1]), others])
        for slot in range(p):
            step = jnp.where(slots.step[slot] == NO_STEP, len(merged), slots.step[slot])  # dropped
            merged = merged.at[step, rows].set(own[slot], mode="drop")
        return merged

    merged: SliceOutputs = jax.tree.map(merge_field, prompted, propagated)
    return merged


def _click_outputs(slots: Slots, prompted: ClickOutputs | None, corrected: ClickOutputs | None) -> ClickOutputs | None:
    """Return the outputs of clicks by slot, `[P + Q, C, R, ...]`.

    Args:
        slots: the slots.
        prompted: `[C, P, R, ...]`.
        corrected: of all propagated slices, `[D - 1, C, R, ...]`, most of which have no clicks.
    """
    if prompted is None:
        return None
    by_slot: ClickOutputs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), prompted)
    if corrected is None:
        return by_slot
    rows = jnp.arange(slots.step.shape[1])
    step = jnp.clip(slots.step[slots.prompted :] - 1, 0)  # [Q, R]

    def join(own: jax.Array, others: jax.Array) -> jax.Array:
        of_slot = jax.vmap(lambda step: others[step, :, rows])(step)  # [Q, R, C, ...]
        return jnp.concatenate([own, jnp.moveaxis(of_slot, 2, 1)])

    joined: ClickOutputs = jax.tree.map(join, by_slot, corrected)
    return joined


def _mean_over_objects(embeddings: jax.Array, propagated: jax.Array, k: int) -> jax.Array:
    """Return the mean slice embedding of the propagated objects of each slice, which remember different things.

    `embeddings [D, R, dim]` and `propagated` bool `[D, R]` to `[B, D, dim]`; zero on slices without such an object.
    """
    d, rows, dim = embeddings.shape
    counts = propagated.reshape(d, rows // k, k, 1)
    total = jnp.where(counts, embeddings.reshape(d, rows // k, k, dim), 0).sum(2)
    return jnp.moveaxis(total / jnp.maximum(counts.sum(2), 1).astype(total.dtype), 1, 0)
