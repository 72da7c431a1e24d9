"""The objective `L = L_seg + lambda_srpp L_srpp + lambda_bd L_bd` (paper) of a walked batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.config import LossConfig, ModelConfig
from sam2_3dmed_jax.sam2.layers import resize_masks
from sam2_3dmed_jax.training import losses
from sam2_3dmed_jax.training.walk import WalkOutput


def objective(
    out: WalkOutput, batch: dict[str, jax.Array], model: ModelConfig, weights: LossConfig, step: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its parts (`loss`, `loss_seg`, `loss_srpp`, `loss_bd`, ..., and the Dice of the chosen masks)."""
    b, d, k, size, _ = batch["masks"].shape
    target = jnp.moveaxis(batch["masks"], 1, 0).reshape(d, b * k, size, size).astype(jnp.float32)
    holds = out.counts & target.any((-2, -1))
    # The candidate is chosen at the decoder's resolution, and only that one is enlarged with a gradient.
    candidates = jax.lax.stop_gradient(out.candidates.logits)  # [D, R, n, S/4, S/4]
    coarse = resize_masks(target, candidates.shape[-1])
    best = losses.best_candidate(candidates, coarse, out.multimask)
    chosen = jnp.take_along_axis(out.candidates.logits, best[..., None, None, None], axis=2)[:, :, 0]
    chosen = resize_masks(chosen, size)  # [D, R, S, S]

    parts = {
        "loss_bce": losses.mask_bce(chosen, target, holds).mean(),
        "loss_dice": losses.clip_dice(chosen, target, holds).mean(),
        "loss_iou": losses.iou_error(
            out.candidates.ious, resize_masks(candidates, size), target, out.multimask, holds
        ).mean(),
        "loss_object_score": losses.object_score_bce(out.candidates.object_score_logits, holds, out.counts).mean(),
    }
    names = {"loss_bce": weights.bce, "loss_dice": weights.dice, "loss_iou": weights.iou}
    names["loss_object_score"] = weights.object_score
    segmentation = sum(losses.weight_at(weight, step) * parts[name] for name, weight in names.items())
    total = jnp.asarray(segmentation)
    parts["loss_seg"] = total
    if out.positions is not None:
        srpp = model.slice_position
        positions = batch["position_mm"] if srpp.unit == "mm" else batch["slice_index"]
        parts["loss_srpp"] = losses.srpp_loss(out.positions, positions, batch["slice_valid"], srpp.scale).mean()
        total = total + losses.weight_at(weights.srpp, step) * parts["loss_srpp"]
    if out.candidates.boundary_logits is not None:
        boundary = resize_masks(out.candidates.boundary_logits, size)
        parts["loss_bd"] = losses.boundary_term(boundary, target, holds, model.boundary).mean()
        total = total + losses.weight_at(weights.bd, step) * parts["loss_bd"]
    parts["loss"] = total
    parts["dice"] = _hard_dice(resize_masks(out.mask_logits, size), target, out.counts)
    return total, parts


def _hard_dice(logits: jax.Array, target: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean Dice of the gated, chosen masks over clips that hold their object."""
    predicted = (logits > 0) & counts[..., None, None]
    reference = (target > 0.5) & counts[..., None, None]
    overlap = (predicted & reference).sum((0, 2, 3))
    sizes = predicted.sum((0, 2, 3)) + reference.sum((0, 2, 3))
    holds = reference.any((0, 2, 3))
    return jnp.where(holds, 2 * overlap / jnp.maximum(sizes, 1), 0).sum() / jnp.maximum(holds.sum(), 1)
