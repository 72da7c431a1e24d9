"""The forward pass of training: a batch of clips, encoded at once and walked by one scan over its D steps.

The steps are inference's: a row (clip x object) is decoded from its prompt on the step where it is prompted, and
from memory afterwards; its memory holds the gated, chosen mask. Before its prompt a row does nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.config import Remat
from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.model.slice_position import SlicePosition
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.prompt_encoder import Prompts, no_prompts
from sam2_3dmed_jax.sam2.remat import rematerialised

MEAN = (0.485, 0.456, 0.406)
SD = (0.229, 0.224, 0.225)
# Slices larger than this, in pixels a side, are encoded one of each clip at a time: a trunk's first stages would hold
# gigabytes of all D, and a larger product is no faster.
ENCODED_AT_ONCE = 256


class WalkOutput(NamedTuple):
    """What the losses look at; R = B x K rows."""

    candidates: MaskCandidates  # each with leading axes [D, R]
    mask_logits: jax.Array  # float32 [D, R, S/4, S/4]: gated and chosen, as at inference
    multimask: jax.Array  # bool [D, R]
    positions: jax.Array | None  # P_pos [B, D, D], with SRPP


class Slice(NamedTuple):
    """What a step of the walk reads of B clips; with a leading axis of steps, of all of them."""

    features: SliceFeatures  # each [B, ...]
    context: jax.Array  # [B, C]
    valid: jax.Array  # bool [B]


class Decoded(NamedTuple):
    """What becomes a memory of R rows on the step after."""

    mask_logits: jax.Array  # float32 [R, S/4, S/4]
    object_score_logits: jax.Array  # float32 [R]
    pointer: jax.Array  # [R, C]


def normalise(unit: jax.Array) -> jax.Array:
    """Grey slices `[..., S, S]` in [0, 1] to the encoder's three channels."""
    return (unit[..., None] - jnp.array(MEAN)) / jnp.array(SD)


def walked_slices(batch: dict[str, jax.Array]) -> jax.Array:
    """Where a row is walked, bool `[D, R]`: on valid slices from its prompt on, if its object is in the clip."""
    valid, start = batch["slice_valid"], batch["prompt_step"]
    begun = jnp.arange(valid.shape[1])[None, :, None] >= start[:, None, :]  # [B, D, K]
    walked = begun & valid[:, :, None] & batch["object_valid"][:, None, :]
    return jnp.moveaxis(walked, 1, 0).reshape(valid.shape[1], -1)


def clip_features(model: SAM2, slices: jax.Array, remat: Remat = "none") -> SliceFeatures:
    """Encode clips `[B, D, S, S]` in [0, 1]; features get leading axes `[D, B]`. `remat` is of each trunk block."""
    b, d, size, _ = slices.shape
    if size <= ENCODED_AT_ONCE:
        features = model.encode_image(normalise(slices.reshape(b * d, size, size)), remat)
        return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(b, d, *x.shape[1:]), 1, 0), features)
    return lax.map(lambda slice_: model.encode_image(normalise(slice_), remat), jnp.moveaxis(slices, 1, 0))


def walk_clips(
    model: SAM2, batch: dict[str, jax.Array], remat_trunk: Remat = "none", remat_slices: Remat = "none"
) -> WalkOutput:
    """Run a model over a batch of `data.clips.Clip` with a leading axis B.

    Args:
        model: SAM 2, or SAM2-3dMed.
        batch: it may hold the features of its slices (`SliceFeatures`' fields, `[B, D, ...]`) in place of `slices`.
        remat_trunk: of each block of the trunk.
        remat_slices: of each step of the walk.
    """
    b, d, k = batch["masks"].shape[:3]
    rows = b * k
    if "slices" in batch:
        features = clip_features(model, batch["slices"], remat_trunk)
    else:
        dtype = jnp.dtype(model.config.compute_dtype)
        features = SliceFeatures(*(jnp.moveaxis(batch[name], 1, 0).astype(dtype) for name in SliceFeatures._fields))

    context = jnp.zeros((d, b, model.config.d_model))
    positions = None
    after_memory: SlicePosition | None = None
    if isinstance(model, SAM2With3DMed) and model.slice_position is not None:
        srpp = model.slice_position
        if srpp.config.memory:
            after_memory = srpp
        else:
            shared = srpp.context(
                jnp.moveaxis(srpp.embed(features.embedding), 0, 1), batch["slice_valid"], batch["slice_index"]
            )
            positions = srpp.positions(shared)
            if (to_mask := srpp.to_mask(shared)) is not None:
                context = jnp.moveaxis(to_mask, 1, 0)

    prompts = Prompts(
        coords=batch["coords"].reshape(rows, -1, 2),
        labels=batch["point_labels"].reshape(rows, -1),
        valid=batch["token_valid"].reshape(rows, -1),
        multimask=batch["multimask"].reshape(rows),
    )
    tracked = no_prompts(rows, prompts.labels.shape[1])
    prompt_step = batch["prompt_step"].reshape(rows)
    object_valid = batch["object_valid"].reshape(rows)
    direction = jnp.ones(rows, jnp.int32)  # slices are counted in walking order
    # Pointers' temporal encoding is normalised as in any volume of 16 slices or more.
    depth = model.config.max_obj_ptrs

    def of_rows(t: jax.Array, at: Slice) -> tuple[jax.Array, jax.Array]:
        """Live rows, and those that are prompted on this step."""
        live = jnp.repeat(at.valid, k) & object_valid
        return live, (prompt_step == t) & live

    def decode(at: Slice, conditioned: jax.Array, prompted: jax.Array) -> tuple[Decoded, tuple]:
        features_t = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), at.features)
        given = jax.tree.map(
            lambda new, none: jnp.where(prompted.reshape(-1, *[1] * (new.ndim - 1)), new, none), prompts, tracked
        )
        out = model.decode(conditioned, features_t, given)
        kept = Decoded(out.mask_logits, out.object_score_logits, out.pointer)
        recalled = after_memory.embed(conditioned) if after_memory else None
        return kept, (out.candidates, out.mask_logits, given.multimask & model.config.multimask, recalled)

    def with_context(at: Slice) -> jax.Array:
        return at.features.embedding + at.context[:, None, None].astype(at.features.embedding.dtype)

    def without_memory(embedding: jax.Array) -> jax.Array:
        return jnp.repeat(model.without_memory(embedding), k, axis=0)

    def first(at: Slice) -> tuple[Decoded, tuple]:
        _, prompted = of_rows(jnp.int32(0), at)
        return decode(at, without_memory(with_context(at)), prompted)

    def step(
        carry: tuple[MemoryBank, Decoded], at: tuple[jax.Array, Slice, Slice]
    ) -> tuple[tuple[MemoryBank, Decoded], tuple]:
        (bank, last), (t, before, now) = carry, at
        # The last slice's output becomes a memory here, where it is first looked at: that of step D - 1 never is.
        live, prompted = of_rows(t - 1, before)
        encoded = model.encode_memory(before.features.embedding, last.mask_logits, last.object_score_logits)
        index = jnp.full(rows, t - 1, jnp.int32)
        bank = bank.write_prompted(jnp.zeros(rows, jnp.int32), index, prompted, encoded, last.pointer)
        recent = bank.recent.write(index, live & (prompt_step < t - 1), encoded, last.pointer)
        bank = MemoryBank(bank.prompted_memory, bank.prompted_pointer, bank.prompted_slice, recent)

        _, prompted = of_rows(t, now)
        embedding = with_context(now)
        memory = model.recall(bank, index + 1, direction, depth)
        conditioned = jnp.where(
            prompted[:, None, None, None],
            without_memory(embedding),
            model.condition_on_memory(embedding, memory),
        )
        kept, seen = decode(now, conditioned, prompted)
        return (bank, kept), seen

    # Between the prompted slice and the last one lie at most D - 2 slices to remember.
    bank = MemoryBank.empty(model.config, rows, 1, jnp.dtype(model.config.compute_dtype), room=max(d - 2, 1))
    clips = Slice(features, context, jnp.moveaxis(batch["slice_valid"], 1, 0))
    before, now = jax.tree.map(lambda x: x[:-1], clips), jax.tree.map(lambda x: x[1:], clips)
    # Nobody remembers anything on the first step, which is not in the scan: a condition within it would have each step
    # keep the weights for the backward pass.
    last, seen = rematerialised(first, remat_slices)(jax.tree.map(lambda x: x[0], clips))
    _, rest = lax.scan(rematerialised(step, remat_slices), (bank, last), (jnp.arange(1, d), before, now))
    every = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), seen, rest)
    candidates, mask_logits, multimask, recalled = every
    if after_memory:
        embedded = _over_objects(recalled, walked_slices(batch), k)
        positions = after_memory.positions(after_memory.context(embedded, batch["slice_valid"], batch["slice_index"]))
    return WalkOutput(candidates, mask_logits, multimask, positions)


def _over_objects(embeddings: jax.Array, walked: jax.Array, k: int) -> jax.Array:
    """One embedding a slice from those of its objects, which remember different things: their mean.

    `embeddings [D, B x K, dim]`, `walked` bool `[D, B x K]` to `[B, D, dim]`; zero where no object is walked.
    """
    d, rows, dim = embeddings.shape
    there = walked.reshape(d, rows // k, k, 1)
    total = jnp.where(there, embeddings.reshape(d, rows // k, k, dim), 0).sum(2)
    return jnp.moveaxis(total / jnp.maximum(there.sum(2), 1).astype(total.dtype), 1, 0)
