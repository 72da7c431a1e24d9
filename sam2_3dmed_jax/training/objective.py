"""The objective `L = L_seg + lambda_srpp L_srpp + lambda_bd L_bd` (paper) from the terms of a batch, or of a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.config import LossConfig, ModelConfig
from sam2_3dmed_jax.model.targets import positions_of
from sam2_3dmed_jax.sam2.layers import resize_masks
from sam2_3dmed_jax.training import losses
from sam2_3dmed_jax.training.losses import Term
from sam2_3dmed_jax.training.unroll import WalkOutput, walked_slices

Batch = dict[str, jax.Array]
Numbers = dict[str, jax.Array]  # what divides each term's sum
SEGMENTATION = ("bce", "ce", "dice", "iou", "object_score")  # the terms of L_seg


def terms(out: WalkOutput, batch: Batch, model: ModelConfig) -> dict[str, Term]:
    """Each term of the loss by its name in the log, and `dice`, of the chosen masks."""
    b, d, k, size, _ = batch["masks"].shape
    target = jnp.moveaxis(batch["masks"], 1, 0).reshape(d, b * k, size, size).astype(jnp.float32)
    counts = walked_slices(batch)
    holds = counts & target.any((-2, -1))
    # The candidate is chosen at the decoder's resolution, and only that one is enlarged with a gradient.
    candidates = jax.lax.stop_gradient(out.candidates.logits)  # [D, R, n, S/4, S/4]
    coarse = resize_masks(target, candidates.shape[-1])
    best = losses.best_candidate(candidates, coarse, out.multimask)
    chosen = jnp.take_along_axis(out.candidates.logits, best[..., None, None, None], axis=2)[:, :, 0]
    chosen = resize_masks(chosen, size)  # [D, R, S, S]

    found = {
        "loss_bce": losses.mask_bce(chosen, target, holds),
        "loss_dice": losses.clip_dice(chosen, target, holds),
        "loss_iou": losses.iou_error(out.candidates.ious, resize_masks(candidates, size), target, out.multimask, holds),
        "loss_object_score": losses.object_score_bce(out.candidates.object_score_logits, holds, counts),
        "dice": _hard_dice(resize_masks(out.mask_logits, size), target, counts),
    }
    if out.positions is not None:
        srpp = model.slice_position
        positions = positions_of(batch, srpp)
        found["loss_srpp"] = losses.srpp_loss(out.positions, positions, batch["slice_valid"], srpp.scale)
    if out.candidates.boundary_logits is not None:
        boundary = resize_masks(out.candidates.boundary_logits, size)
        found["loss_bd"] = losses.boundary_term(boundary, target, holds, model.boundary)
    return found


def term_numbers(
    forward: Callable[[Batch], Any], terms: Callable[[Any, Batch], dict[str, Term]], batch: Batch
) -> Numbers:
    """What divides the terms of a batch. It depends on the batch alone: the compiler drops the rest of the terms."""
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(forward, batch))
    return {name: term.number for name, term in terms(nothing, batch).items()}


def objective(
    found: dict[str, Term],
    weights: LossConfig,
    step: jax.Array,
    total: Callable[[Numbers], Numbers] = lambda numbers: numbers,
    numbers: Numbers | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its parts: `loss`, `loss_seg`, `loss_srpp`, `loss_bd`, ..., and `dice`.

    Of a part of a batch they are the part's shares, which add up to the whole's.

    Args:
        found: the terms of the batch, or of the part, by name; a model has those of its kind.
        weights: of the terms.
        step: int32, where schedules are.
        total: sums numbers over the devices that walk the other parts.
        numbers: of the whole batch, if other parts are walked at another time.
    """
    numbers = numbers or total({name: term.number for name, term in found.items()})
    parts = {name: Term(term.total, numbers[name]).mean() for name, term in found.items()}
    loss = jnp.zeros(())
    for name in SEGMENTATION:
        if f"loss_{name}" in parts:
            loss = loss + losses.weight_at(getattr(weights, name), step) * parts[f"loss_{name}"]
    parts["loss_seg"] = loss
    for name in ("srpp", "bd"):
        if f"loss_{name}" in parts:
            loss = loss + losses.weight_at(getattr(weights, name), step) * parts[f"loss_{name}"]
    parts["loss"] = loss
    return loss, parts


def _hard_dice(logits: jax.Array, target: jax.Array, counts: jax.Array) -> Term:
    """Dice of the gated, chosen masks, over clips that hold their object."""
    predicted = (logits > 0) & counts[..., None, None]
    reference = (target > 0.5) & counts[..., None, None]
    overlap = (predicted & reference).sum((0, 2, 3))
    sizes = predicted.sum((0, 2, 3)) + reference.sum((0, 2, 3))
    holds = reference.any((0, 2, 3))
    dice = jnp.where(holds, 2 * overlap / jnp.maximum(sizes, 1), 0)
    return Term(dice.sum(), holds.sum(dtype=jnp.float32))
