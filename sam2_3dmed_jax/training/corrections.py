"""Corrective clicks of training: a slice is decoded again after each click on the error of its mask.

As in SAM 2's training (section "Interactive" of its paper, `sam2/training/model/sam2.py`), each click adds a point to
the prompts of the slice, the logits before it are the dense prompt, and each result has its own losses. The gradient
passes through the dense prompts, from click to click. Logits are clamped before they become a prompt, as at inference.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.sam2.layers import resize_masks
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures, SliceOutput
from sam2_3dmed_jax.sam2.prompt_encoder import NEGATIVE, NOT_A_POINT, POSITIVE, PromptTokens
from sam2_3dmed_jax.training.error_pixels import draw_error_clicks

DENSE_PROMPT_LIMIT = 32.0  # of the logits, as at inference


class Decoded(NamedTuple):
    """The part of a decoder's result that later clicks and memories depend on."""

    mask_logits: jax.Array  # float32 [R, S/4, S/4], gated by the object score
    object_score_logits: jax.Array  # float32 [R]
    pointer: jax.Array  # [R, C]
    confidence: jax.Array | None  # float32 [R], of a memory rule that ranks memories


def decoded_of(model: SAM2, out: SliceOutput) -> Decoded:
    """Return the part of a result that is kept."""
    confidence = model.memory_confidence(out.predicted_iou, out.object_score_logits)
    return Decoded(out.mask_logits, out.object_score_logits, out.pointer, confidence)


class ClickOutputs(NamedTuple):
    """What the losses compare after each click; with a leading axis of clicks."""

    candidates: MaskCandidates  # each field [R, ...]
    multimask: jax.Array  # bool [R]


class SliceClicks(NamedTuple):
    """The clicks that a slice will get."""

    number: jax.Array  # int32 [R], at most C
    draw: jax.Array  # float32 [R, C], see `draw_error_clicks`
    reference: jax.Array  # bool [R, S, S]


class _Clicked(NamedTuple):
    """The carry of the loop over clicks: the latest result, and the tokens so far."""

    latest: Decoded
    coords: jax.Array
    labels: jax.Array
    valid: jax.Array


def correct(
    model: SAM2,
    conditioned: jax.Array,
    features: SliceFeatures,
    prompts: PromptTokens,
    decoded: Decoded,
    clicks: SliceClicks,
) -> tuple[Decoded, ClickOutputs]:
    """Correct a slice by clicks.

    Args:
        model: SAM 2.
        conditioned: features that the slice was decoded from, `[R, h, w, C]`.
        features: of the slice, with a leading axis R.
        prompts: the tokens so far, `[R, T, ...]`; none, on a slice that the propagation reached.
        decoded: the result so far.
        clicks: the clicks; where there are none, nothing changes and nothing is computed.

    Returns:
        The last result, and the outputs after each of the C clicks, which are zeros after a row's last click.
    """
    tokens = prompts.labels.shape[1]
    limit = clicks.draw.shape[1]
    unprompted = (prompts.labels == NOT_A_POINT).all(1)
    padded = _with_room(prompts, limit)
    # A click needs one "not a point" in addition, and a slice without prompts has two.
    valid = padded.valid.at[:, 1].set(padded.valid[:, 1] & ~unprompted)
    first = _Clicked(decoded, padded.coords, padded.labels, valid)

    def click(carry: _Clicked, i: jax.Array) -> tuple[_Clicked, ClickOutputs]:
        clicked = i < clicks.number
        size = clicks.reference.shape[-1]
        predicted = resize_masks(lax.stop_gradient(carry.latest.mask_logits), size) > 0
        placed = draw_error_clicks(predicted, clicks.reference, clicks.draw[:, i])
        labels = jnp.where(placed.inside, POSITIVE, NEGATIVE)
        slot = tokens + i
        after = carry._replace(
            coords=carry.coords.at[:, slot].set(placed.coords),
            labels=carry.labels.at[:, slot].set(labels),
            valid=carry.valid.at[:, slot].set(clicked),
        )
        is_point = after.valid & (after.labels != NOT_A_POINT)
        dense = carry.latest.mask_logits.clip(-DENSE_PROMPT_LIMIT, DENSE_PROMPT_LIMIT)
        out = model.decode(
            conditioned,
            features,
            PromptTokens(
                after.coords,
                after.labels,
                after.valid,
                # A single click is ambiguous, and chosen among three candidates, as at inference.
                multimask=is_point.sum(1) <= 1,
                mask=dense,
                has_mask=jnp.ones(len(dense), bool),
            ),
        )
        latest = decoded_of(model, out)
        after = after._replace(latest=_where(clicked, latest, carry.latest))
        multimask = (is_point.sum(1) <= 1) & model.config.multimask
        return after, ClickOutputs(out.candidates, multimask)

    shapes = jax.eval_shape(click, first, jnp.int32(0))[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    # The backward pass decodes again: otherwise it would store every intermediate value of C decoders.
    @jax.checkpoint
    def step(carry: _Clicked, i: jax.Array) -> tuple[_Clicked, ClickOutputs]:
        return lax.cond(  # type: ignore[no-any-return]
            (i < clicks.number).any(), click, lambda carry, _: (carry, nothing), carry, i
        )

    last, outputs = lax.scan(step, first, jnp.arange(limit))
    return last.latest, outputs


def _with_room(prompts: PromptTokens, tokens: int) -> PromptTokens:
    """Add `tokens` masked tokens to each row."""
    room = ((0, 0), (0, tokens))
    return prompts._replace(
        coords=jnp.pad(prompts.coords, (*room, (0, 0))),
        labels=jnp.pad(prompts.labels, room, constant_values=NOT_A_POINT),
        valid=jnp.pad(prompts.valid, room),
    )


def _where(rows: jax.Array, new: Decoded, old: Decoded) -> Decoded:
    return jax.tree.map(lambda x, y: jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), x, y), new, old)
