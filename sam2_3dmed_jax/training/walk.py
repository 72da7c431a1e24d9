"""The forward pass of training: a batch of clips, encoded at once and walked by one scan over its D steps.

The steps are inference's: a row (clip x object) is decoded from its prompt on the step where it is prompted, and
from memory afterwards; its memory holds the gated, chosen mask. Before its prompt a row does nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.model.sam2_3dmed import SAM2With3DMed
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.prompt_encoder import Prompts, no_prompts

MEAN = (0.485, 0.456, 0.406)
SD = (0.229, 0.224, 0.225)


class WalkOutput(NamedTuple):
    """What the losses look at; R = B x K rows."""

    candidates: MaskCandidates  # each with leading axes [D, R]
    mask_logits: jax.Array  # float32 [D, R, S/4, S/4]: gated and chosen, as at inference
    multimask: jax.Array  # bool [D, R]
    counts: jax.Array  # bool [D, R]: valid slices from the prompt on
    positions: jax.Array | None  # P_pos [B, D, D], with SRPP


def normalise(unit: jax.Array) -> jax.Array:
    """Grey slices `[..., S, S]` in [0, 1] to the encoder's three channels."""
    return (unit[..., None] - jnp.array(MEAN)) / jnp.array(SD)


def walk_clips(model: SAM2, batch: dict[str, jax.Array]) -> WalkOutput:
    """Run a model over a batch of `data.clips.Clip` with a leading axis B."""
    slices = batch["slices"]
    b, d = slices.shape[:2]
    k = batch["masks"].shape[2]
    rows = b * k
    features = model.encode_image(normalise(slices.reshape(b * d, *slices.shape[2:])))
    features = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(b, d, *x.shape[1:]), 1, 0), features)  # [D, B, ...]

    context = jnp.zeros((d, b, model.config.d_model))
    positions = None
    if isinstance(model, SAM2With3DMed) and model.slice_position is not None:
        srpp = model.slice_position
        shared = srpp.context(jnp.moveaxis(srpp.embed(features.embedding), 0, 1), batch["slice_valid"])
        positions = srpp.positions(shared)
        context = jnp.moveaxis(srpp.to_features(shared), 1, 0)

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

    def remember(embedding: jax.Array, bank: MemoryBank, index: jax.Array) -> jax.Array:
        return model.condition_on_memory(embedding, model.recall(bank, index, direction, depth))

    def step(bank: MemoryBank, at: tuple) -> tuple[MemoryBank, tuple]:
        t, features_t, context_t, slice_valid = at
        features_t = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), features_t)
        embedding = features_t.embedding + jnp.repeat(context_t, k, axis=0)[:, None, None].astype(
            features_t.embedding.dtype
        )
        index = jnp.full(rows, t, jnp.int32)
        live = jnp.repeat(slice_valid, k) & object_valid
        prompted = (prompt_step == t) & live
        conditioned = jnp.where(
            prompted[:, None, None, None],
            model.without_memory(embedding),
            # Nobody remembers anything on the first step.
            lax.cond(t > 0, remember, lambda embedding, *_: jnp.zeros_like(embedding), embedding, bank, index),
        )
        given = jax.tree.map(
            lambda new, none: jnp.where(prompted.reshape(-1, *[1] * (new.ndim - 1)), new, none), prompts, tracked
        )
        out = model.decode(conditioned, features_t, given)
        encoded = lax.cond(  # nobody looks back on the last step
            t < d - 1,
            model.encode_memory,
            lambda *_: jnp.zeros_like(bank.prompted_memory[:, 0]),
            *(features_t.embedding, out.mask_logits, out.object_score_logits),
        )
        bank = bank.write_prompted(jnp.zeros(rows, jnp.int32), index, prompted, encoded, out.pointer)
        walked = live & (prompt_step < t)
        recent = bank.recent.write(index, walked, encoded, out.pointer)
        bank = MemoryBank(bank.prompted_memory, bank.prompted_pointer, bank.prompted_slice, recent)
        multimask = given.multimask & model.config.multimask
        return bank, (out.candidates, out.mask_logits, multimask, prompted | walked)

    # Between the prompted slice and the last one lie at most D - 2 slices to remember.
    bank = MemoryBank.empty(model.config, rows, 1, jnp.dtype(model.config.compute_dtype), room=max(d - 2, 1))
    valid = jnp.moveaxis(batch["slice_valid"], 1, 0)
    _, outputs = lax.scan(step, bank, (jnp.arange(d), features, context, valid))
    candidates, mask_logits, multimask, counts = outputs
    return WalkOutput(candidates, mask_logits, multimask, counts, positions)
