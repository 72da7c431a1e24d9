"""The losses of SAM2-3dMed, as pure functions on arrays. Each returns a sum and the number that divides it.

Both are over the global batch, so that a loss depends neither on the number of devices nor on padding.
Masks have losses only on slices that hold the object, from the ungated candidate that fits best; the object score
has one on every slice (`SEMANTICS`: what SAM 2 gates would get no gradient).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sam2_3dmed_jax.config import BdConfig
from sam2_3dmed_jax.model.targets import boundary_target, srpp_targets

Weight = float | tuple[tuple[int, float], ...]


class Term(NamedTuple):
    """A loss as sum and number of terms; its value is their quotient, 0 when nothing counts."""

    total: jax.Array
    number: jax.Array

    def mean(self) -> jax.Array:
        """The quotient."""
        return self.total / jnp.maximum(self.number, 1.0)


def weight_at(weight: Weight, step: jax.Array) -> jax.Array:
    """A loss weight at a step: a number, or linear between the knots of a schedule."""
    if isinstance(weight, tuple):
        steps, values = zip(*weight, strict=True)
        return jnp.interp(step, jnp.array(steps, jnp.float32), jnp.array(values, jnp.float32))
    return jnp.asarray(weight, jnp.float32)


def best_candidate(logits: jax.Array, target: jax.Array, multimask: jax.Array) -> jax.Array:
    """The candidate with the lowest BCE plus Dice loss on its slice.

    Args:
        logits: `[..., n, H, W]`.
        target: float `[..., H, W]`.
        multimask: bool `[...]`: choose among candidates 1 to 3; otherwise 0.

    Returns:
        int `[...]`.
    """
    reference = target[..., None, :, :]
    bce = optax.sigmoid_binary_cross_entropy(logits, reference).mean((-2, -1))
    probability = jax.nn.sigmoid(logits)
    overlap = (probability * reference).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + reference.sum((-2, -1)) + 1)
    return jnp.argmin(jnp.where(_eligible(logits.shape[-3], multimask), bce + dice, jnp.inf), axis=-1)


def _eligible(candidates: int, multimask: jax.Array) -> jax.Array:
    """Which candidates may become the mask: bool `[..., n]`."""
    return multimask[..., None] ^ (jnp.arange(candidates) == 0)


def mask_bce(logits: jax.Array, target: jax.Array, holds: jax.Array) -> Term:
    """Mean BCE a slice: `logits`, `target [..., H, W]`; `holds [...]` says which slices count."""
    loss = optax.sigmoid_binary_cross_entropy(logits, target).mean((-2, -1))
    return Term((loss * holds).sum(), holds.sum(dtype=jnp.float32))


def clip_dice(logits: jax.Array, target: jax.Array, holds: jax.Array) -> Term:
    """Soft Dice loss a clip and object, over all its slices that hold the object, never a slice by itself.

    Args:
        logits: `[D, R, H, W]`.
        target: `[D, R, H, W]`.
        holds: bool `[D, R]`.
    """
    probability = jax.nn.sigmoid(logits) * holds[..., None, None]
    target = target * holds[..., None, None]
    overlap = (probability * target).sum((0, 2, 3))
    sizes = probability.sum((0, 2, 3)) + target.sum((0, 2, 3))
    counts = holds.any(0)
    return Term(((1 - (2 * overlap + 1) / (sizes + 1)) * counts).sum(), counts.sum(dtype=jnp.float32))


def iou_error(ious: jax.Array, logits: jax.Array, target: jax.Array, multimask: jax.Array, holds: jax.Array) -> Term:
    """L1 between predicted IoU and true IoU of each eligible candidate (`[..., n]`), on slices that hold the object."""
    predicted = logits > 0
    reference = (target > 0.5)[..., None, :, :]
    intersection = (predicted & reference).sum((-2, -1))
    true = intersection / jnp.maximum((predicted | reference).sum((-2, -1)), 1)
    eligible = _eligible(logits.shape[-3], multimask)
    error = jnp.abs(ious - lax.stop_gradient(true)).mean(-1, where=eligible)
    return Term((error * holds).sum(), holds.sum(dtype=jnp.float32))


def object_score_bce(score_logits: jax.Array, holds: jax.Array, counts: jax.Array) -> Term:
    """BCE of "the object is on this slice", on every slice that `counts`; all `[D, R]`."""
    loss = optax.sigmoid_binary_cross_entropy(score_logits, holds.astype(jnp.float32))
    return Term((loss * counts).sum(), counts.sum(dtype=jnp.float32))


def srpp_loss(predicted: jax.Array, positions: jax.Array, valid: jax.Array, scale: float) -> Term:
    """Squared error of each ordered pair i != j of valid slices (paper, L_srpp).

    Args:
        predicted: `P_pos` `[B, D, D]`, in units of `scale`.
        positions: `[B, D]`.
        valid: bool `[B, D]`.
        scale: divides the targets.
    """
    pairs = valid[:, :, None] & valid[:, None, :] & ~jnp.eye(valid.shape[1], dtype=bool)
    error = jnp.square(predicted - srpp_targets(positions, scale))
    return Term((error * pairs).sum(), pairs.sum(dtype=jnp.float32))


def boundary_loss(logits: jax.Array, target: jax.Array, holds: jax.Array, normaliser: str) -> Term:
    """Class-balanced BCE of the boundary, an object and slice (paper, L_bd), on slices that hold the object.

    `(N_nonbd / N) sum_bd BCE + (N_bd / N) sum_nonbd BCE`, divided by `2 N_bd N_nonbd / N` (`balanced`, ours: the mean
    of the two classes' means, whatever the size of image and target) or by N (`paper`).

    Args:
        logits: `[..., H, W]`.
        target: in {0, 1}, `[..., H, W]`.
        holds: bool `[...]`.
        normaliser: see `BdConfig`.
    """
    bce = optax.sigmoid_binary_cross_entropy(logits, target)
    pixels = float(target.shape[-1] * target.shape[-2])
    boundary = target.sum((-2, -1))
    others = pixels - boundary
    on = (bce * target).sum((-2, -1))
    off = (bce * (1 - target)).sum((-2, -1))
    loss = (others * on + boundary * off) / pixels
    divisor = pixels if normaliser == "paper" else 2 * boundary * others / pixels
    counts = holds & (boundary > 0) & (others > 0)
    loss = jnp.where(counts, loss / jnp.where(counts, divisor, 1.0), 0.0)
    return Term(loss.sum(), counts.sum(dtype=jnp.float32))


def boundary_term(logits: jax.Array, masks: jax.Array, holds: jax.Array, config: BdConfig) -> Term:
    """`boundary_loss` of logits against masks, both `[..., H, W]`."""
    return boundary_loss(logits, boundary_target(masks, config.width), holds, config.normaliser)
