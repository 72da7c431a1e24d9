"""Losses: pure functions on arrays, and the table that assigns each loss its log column and its weight.

Each loss is a sum and a divisor over the global batch, so that its value depends neither on the number of devices nor
on padding. The losses of clips follow the SAM2-3dMed paper and SAM 2 (docs/explanation/semantics.md explains why):
masks are compared on slices that contain the object, with the best candidate before it is gated by the object score,
because a gated mask has no gradient; the object score is compared on every slice. The losses of patches are nnU-Net's.

To add a loss, write its function and one entry of `LOSSES`. Everything else follows from the table: the objective, the
columns of `log.csv`, TensorBoard and the checks (`objective.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sam2_3dmed_jax.config import AnyModelConfig, BdConfig, LossConfig, ModelConfig
from sam2_3dmed_jax.model.targets import boundary_target, positions_of, srpp_targets
from sam2_3dmed_jax.sam2.layers import resize_masks, with_leading_axes
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates
from sam2_3dmed_jax.training.unroll import (
    Batch,
    UnrolledClips,
    prompted_and_corrected_slots,
    prompted_by_mask,
    propagated_slices,
)

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # SAM 2's
SMOOTH = 1e-5  # of the soft Dice of patches, as nnU-Net's
PatchLogits = list[jax.Array]  # [B, d, h, w, 1 + classes] per resolution, the finest first


class Term(NamedTuple):
    """A loss or metric as a sum and its divisor, a count; the value is 0 where the count is 0."""

    total: jax.Array
    divisor: jax.Array

    def mean(self) -> jax.Array:
        """Return the value."""
        return self.total / jnp.maximum(self.divisor, 1.0)

    def plus(self, other: Term | None) -> Term:
        """Return the term over the items of both terms."""
        return self if other is None else Term(self.total + other.total, self.divisor + other.divisor)


# Losses of clips. D slices, R = B x K rows (objects of clips), n mask candidates.


def best_candidate(logits: jax.Array, target: jax.Array, multimask: jax.Array) -> jax.Array:
    """Return the index of the candidate with the lowest sum of BCE and Dice loss on its slice.

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
    """Return which candidates may become the mask, bool `[..., n]`."""
    return multimask[..., None] ^ with_leading_axes(jnp.arange(candidates) == 0, multimask.ndim + 1)


def mask_bce(logits: jax.Array, target: jax.Array, present: jax.Array) -> Term:
    """Return the BCE per slice, the mean over its pixels, on slices where `present`.

    Args:
        logits: `[..., H, W]`.
        target: `[..., H, W]`.
        present: bool `[...]`.
    """
    loss = optax.sigmoid_binary_cross_entropy(logits, target).mean((-2, -1))
    return Term((loss * present).sum(), present.sum(dtype=jnp.float32))


def focal_loss(logits: jax.Array, target: jax.Array, present: jax.Array) -> Term:
    """Return the focal loss per slice, the mean over its pixels, on slices where `present`.

    `alpha_t (1 - p_t)^2 BCE` with alpha = 0.25 (Lin et al. 2017), as `sigmoid_focal_loss` in SAM 2's training.

    Args:
        logits: `[..., H, W]`.
        target: `[..., H, W]`.
        present: bool `[...]`.
    """
    loss = optax.sigmoid_focal_loss(logits, target, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA).mean((-2, -1))
    return Term((loss * present).sum(), present.sum(dtype=jnp.float32))


def slice_dice(logits: jax.Array, target: jax.Array, share: jax.Array) -> Term:
    """Return the soft Dice loss per slice; each slice counts as much as its `share [...]`.

    Args:
        logits: `[..., H, W]`.
        target: `[..., H, W]`.
        share: float32 `[...]`, 0 for slices without a loss.
    """
    probability = jax.nn.sigmoid(logits)
    overlap = (probability * target).sum((-2, -1))
    sizes = probability.sum((-2, -1)) + target.sum((-2, -1))
    return Term(((1 - (2 * overlap + 1) / (sizes + 1)) * share).sum(), share.sum())


def clip_dice(logits: jax.Array, target: jax.Array, present: jax.Array) -> Term:
    """Return the soft Dice loss per row, over all slices that contain the object together.

    Args:
        logits: `[D, R, H, W]`.
        target: `[D, R, H, W]`.
        present: bool `[D, R]`.
    """
    probability = jax.nn.sigmoid(logits) * present[..., None, None]
    target = target * present[..., None, None]
    overlap = (probability * target).sum((0, 2, 3))
    sizes = probability.sum((0, 2, 3)) + target.sum((0, 2, 3))
    counts = present.any(0)
    return Term(((1 - (2 * overlap + 1) / (sizes + 1)) * counts).sum(), counts.sum(dtype=jnp.float32))


def iou_error(ious: jax.Array, logits: jax.Array, target: jax.Array, multimask: jax.Array, present: jax.Array) -> Term:
    """Return the L1 distance of predicted and true IoU, the mean over the eligible candidates of a slice.

    Args:
        ious: predicted IoU `[..., n]`.
        logits: `[..., n, H, W]`.
        target: `[..., H, W]`.
        multimask: bool `[...]`.
        present: bool `[...]`: slices that contain the object.
    """
    predicted = logits > 0
    reference = (target > 0.5)[..., None, :, :]
    intersection = (predicted & reference).sum((-2, -1))
    true = intersection / jnp.maximum((predicted | reference).sum((-2, -1)), 1)
    eligible = _eligible(logits.shape[-3], multimask)
    error = jnp.abs(ious - lax.stop_gradient(true)).mean(-1, where=eligible)
    return Term((error * present).sum(), present.sum(dtype=jnp.float32))


def object_score_bce(score_logits: jax.Array, present: jax.Array, propagated: jax.Array) -> Term:
    """Return the BCE of "the object is on this slice" per propagated slice; all `[D, R]`."""
    loss = optax.sigmoid_binary_cross_entropy(score_logits, present.astype(jnp.float32))
    return Term((loss * propagated).sum(), propagated.sum(dtype=jnp.float32))


def hard_dice(logits: jax.Array, target: jax.Array, propagated: jax.Array) -> Term:
    """Return the Dice per row that contains its object, over all propagated slices together.

    Args:
        logits: of the chosen masks, gated by the object score, `[D, R, H, W]`.
        target: `[D, R, H, W]`.
        propagated: bool `[D, R]`.
    """
    predicted = (logits > 0) & propagated[..., None, None]
    reference = (target > 0.5) & propagated[..., None, None]
    overlap = (predicted & reference).sum((0, 2, 3))
    sizes = predicted.sum((0, 2, 3)) + reference.sum((0, 2, 3))
    present = reference.any((0, 2, 3))
    dice = jnp.where(present, 2 * overlap / jnp.maximum(sizes, 1), 0)
    return Term(dice.sum(), present.sum(dtype=jnp.float32))


def srpp_loss(
    predicted: jax.Array, positions: jax.Array, slice_index: jax.Array, valid: jax.Array, scale: float
) -> Term:
    """Return the squared error per ordered pair i != j of valid slices in reach of a clip (paper, L_srpp).

    A clip with a stride of s slices has pairs up to (D - 1) s apart. Clips of an absent object jump from the prompted
    slice to slices far away; with those pairs, few clips would be most of the loss (docs/explanation/method.md).

    Args:
        predicted: `P_pos` `[B, D, D]`, in units of `scale`.
        positions: `[B, D]`, in the unit of the targets.
        slice_index: `[B, D]`, indices in the volume.
        valid: bool `[B, D]`.
        scale: divisor of the targets.
    """
    d = valid.shape[1]
    steps = jnp.where(valid[:, 1:] & valid[:, :-1], jnp.abs(jnp.diff(slice_index, axis=1)), jnp.inf)
    stride = steps.min(1, initial=jnp.inf)
    distance = jnp.abs(slice_index[:, None, :] - slice_index[:, :, None])
    near = distance <= (d - 1) * stride[:, None, None]
    pairs = valid[:, :, None] & valid[:, None, :] & near & ~jnp.eye(d, dtype=bool)[None]
    error = jnp.square(predicted - srpp_targets(positions, scale))
    return Term((error * pairs).sum(), pairs.sum(dtype=jnp.float32))


def boundary_loss(logits: jax.Array, target: jax.Array, present: jax.Array, normaliser: str) -> Term:
    """Return the class-balanced BCE of the boundary per slice and object (paper, L_bd).

    `(N_nonbd / N) sum_bd BCE + (N_bd / N) sum_nonbd BCE`, divided by `2 N_bd N_nonbd / N` (`balanced`, ours: the mean
    of the means of the two classes, which does not depend on the sizes of image and target) or by N (`paper`).

    Args:
        logits: `[..., H, W]`.
        target: in {0, 1}, `[..., H, W]`.
        present: bool `[...]`: slices that contain the object.
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
    counts = present & (boundary > 0) & (others > 0)
    loss = jnp.where(counts, loss / jnp.where(counts, divisor, 1.0), 0.0)
    return Term(loss.sum(), counts.sum(dtype=jnp.float32))


def mask_boundary_loss(logits: jax.Array, masks: jax.Array, present: jax.Array, config: BdConfig) -> Term:
    """Return the `boundary_loss` of logits against the boundaries of masks, both `[..., H, W]`."""
    return boundary_loss(logits, boundary_target(masks, config.width), present, config.normaliser)


class MaskPredictions(NamedTuple):
    """Predicted masks of N slices of R rows, and what they are compared with."""

    multimask: jax.Array  # bool [N, R]
    ious: jax.Array  # predicted IoU [N, R, n]
    object_score_logits: jax.Array  # [N, R]
    target: jax.Array  # reference masks, float32 [N, R, S, S]
    counted: jax.Array  # bool [N, R]: slices with a loss
    present: jax.Array  # bool [N, R]: those that contain the object
    candidates: jax.Array  # logits of the mask candidates, without a gradient, [N, R, n, S/4, S/4]
    chosen: jax.Array  # logits of the best candidate, [N, R, S, S]


class ClipInputs(NamedTuple):
    """What the losses of clips are computed from."""

    out: UnrolledClips
    batch: Batch
    slices: MaskPredictions  # of the N = D slices; without those that are prompted by their mask
    # After each click, N = (P + Q) C. SAM 2 sums the losses of all decodings of a slice, each with the same weight.
    clicks: MaskPredictions | None
    propagated: jax.Array  # bool [D, R]: slices from the prompt on, without padding


def clip_inputs(out: UnrolledClips, batch: Batch) -> ClipInputs:
    """Return the inputs of the losses of a batch of clips."""
    b, d, k, size, _ = batch["masks"].shape
    target = jnp.moveaxis(batch["masks"], 1, 0).reshape(d, b * k, size, size).astype(jnp.float32)
    propagated = propagated_slices(batch)
    counted = propagated & ~prompted_by_mask(batch)  # the output of a mask prompt is the mask
    slices = _mask_predictions(out.candidates, out.multimask, target, counted)
    return ClipInputs(out, batch, slices, _after_clicks(out, batch, target), propagated)


def _after_clicks(out: UnrolledClips, batch: Batch, target: jax.Array) -> MaskPredictions | None:
    """Return the predictions after each click; `target` `[D, R, S, S]`."""
    slots = prompted_and_corrected_slots(batch)
    if out.clicks is None or slots.clicks is None:
        return None
    limit = out.clicks.multimask.shape[1]
    given = jnp.arange(limit)[None, :, None] < slots.clicks[:, None, :]  # [P + Q, C, R]
    rows = jnp.arange(slots.step.shape[1])[None, :]
    of_slot = target[jnp.clip(slots.step, 0), rows]  # [P + Q, R, S, S]
    candidates, multimask, counted = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), (out.clicks.candidates, out.clicks.multimask, given)
    )
    return _mask_predictions(candidates, multimask, jnp.repeat(of_slot, limit, axis=0), counted)


def _mask_predictions(
    candidates: MaskCandidates, multimask: jax.Array, target: jax.Array, counted: jax.Array
) -> MaskPredictions:
    # The candidate is chosen at the decoder's resolution, and only the chosen one is enlarged with a gradient.
    logits = lax.stop_gradient(candidates.logits)
    best = best_candidate(logits, resize_masks(target, logits.shape[-1]), multimask)
    chosen = jnp.take_along_axis(candidates.logits, best[..., None, None, None], axis=2)[:, :, 0]
    return MaskPredictions(
        multimask=multimask,
        ious=candidates.ious,
        object_score_logits=candidates.object_score_logits,
        target=target,
        counted=counted,
        present=counted & target.any((-2, -1)),
        candidates=logits,
        chosen=resize_masks(chosen, target.shape[-1]),
    )


def _over_decodings(x: ClipInputs, term: Callable[[MaskPredictions], Term]) -> Term:
    """Return a term over the slices and over the results of all clicks."""
    return term(x.slices).plus(None if x.clicks is None else term(x.clicks))


def _bce(x: ClipInputs, model: ModelConfig) -> Term:
    return _over_decodings(x, lambda masks: mask_bce(masks.chosen, masks.target, masks.present))


def _focal(x: ClipInputs, model: ModelConfig) -> Term:
    return _over_decodings(x, lambda masks: focal_loss(masks.chosen, masks.target, masks.present))


def _dice(x: ClipInputs, model: ModelConfig) -> Term:
    of_clips = clip_dice(x.slices.chosen, x.slices.target, x.slices.present)
    if x.clicks is None:
        return of_clips
    # Each click counts as one slice of its row.
    share = x.clicks.present / jnp.maximum(x.slices.present.sum(0), 1)[None, :]
    return of_clips.plus(slice_dice(x.clicks.chosen, x.clicks.target, share))


def _iou(x: ClipInputs, model: ModelConfig) -> Term:
    def term(masks: MaskPredictions) -> Term:
        candidates = resize_masks(masks.candidates, masks.target.shape[-1])
        return iou_error(masks.ious, candidates, masks.target, masks.multimask, masks.present)

    return _over_decodings(x, term)


def _object_score(x: ClipInputs, model: ModelConfig) -> Term:
    return _over_decodings(x, lambda masks: object_score_bce(masks.object_score_logits, masks.present, masks.counted))


def _hard_dice(x: ClipInputs, model: ModelConfig) -> Term:
    masks = x.slices
    return hard_dice(resize_masks(x.out.mask_logits, masks.target.shape[-1]), masks.target, masks.counted)


def _srpp(x: ClipInputs, model: ModelConfig) -> Term:
    assert x.out.positions is not None
    srpp = model.slice_position
    positions, index = positions_of(x.batch, srpp), x.batch["slice_index"]
    return srpp_loss(x.out.positions, positions, index, x.batch["slice_valid"], srpp.scale)


def _boundary(x: ClipInputs, model: ModelConfig) -> Term:
    assert x.out.candidates.boundary_logits is not None
    masks = x.slices
    logits = resize_masks(x.out.candidates.boundary_logits, masks.target.shape[-1])
    return mask_boundary_loss(logits, masks.target, masks.present, model.boundary)


# Losses of patches, for the U-Net.


class PatchScale(NamedTuple):
    """The logits and labels of a batch of patches at one resolution of the decoder."""

    share: float  # of the resolution in the loss
    logits: jax.Array  # [B, d, h, w, 1 + classes]
    onehot: jax.Array  # [B, d, h, w, 1 + classes]


class PatchInputs(NamedTuple):
    """What the losses of patches are computed from."""

    scales: list[PatchScale]  # the finest first, without the coarsest
    logits: jax.Array  # of the finest resolution, [B, D, H, W, 1 + classes]
    labels: jax.Array  # [B, D, H, W]


def patch_inputs(out: PatchLogits, batch: Batch) -> PatchInputs:
    """Return the inputs of the losses of a batch of patches.

    As in nnU-Net, each resolution has half the share of the next finer one, and the coarsest has none.
    """
    labels = batch["labels"]
    used = out[:-1] or out
    shares = np.array([0.5**scale for scale in range(len(used))])
    shares /= shares.sum()
    scales = [
        PatchScale(share, logits, jax.nn.one_hot(_coarse_labels(labels, logits.shape[1:4]), logits.shape[-1]))
        for logits, share in zip(used, shares.tolist(), strict=True)
    ]
    return PatchInputs(scales, out[0], labels)


def patch_cross_entropy(x: PatchInputs, model: AnyModelConfig) -> Term:
    """Return the cross-entropy over classes per patch."""
    loss = jnp.zeros(len(x.labels))
    for share, logits, onehot in x.scales:
        loss = loss - share * (jax.nn.log_softmax(logits) * onehot).sum(-1).mean((1, 2, 3))
    return Term(loss.sum(), jnp.asarray(len(x.labels), jnp.float32))


def patch_dice(x: PatchInputs, model: AnyModelConfig) -> Term:
    """Return the soft Dice loss per patch, the mean over the classes without the background."""
    loss = jnp.zeros(len(x.labels))
    for share, logits, onehot in x.scales:
        loss = loss + share * (1 - _soft_dice(jax.nn.softmax(logits)[..., 1:], onehot[..., 1:]))
    return Term(loss.sum(), jnp.asarray(len(x.labels), jnp.float32))


def patch_hard_dice(x: PatchInputs, model: AnyModelConfig) -> Term:
    """Return the Dice per class and patch that contains the class."""
    classes = with_leading_axes(jnp.arange(1, x.logits.shape[-1]), x.logits.ndim)
    predicted = x.logits.argmax(-1)[..., None] == classes
    reference = x.labels[..., None] == classes
    sizes = reference.sum((1, 2, 3))
    overlap = (predicted & reference).sum((1, 2, 3))
    dice = 2 * overlap / jnp.maximum(predicted.sum((1, 2, 3)) + sizes, 1)
    return Term((dice * (sizes > 0)).sum(), (sizes > 0).sum(dtype=jnp.float32))


def _coarse_labels(labels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return labels `[B, D, H, W]` at a coarser resolution: the middle voxel of each block."""
    for axis, size in enumerate(shape, 1):
        step = labels.shape[axis] // size
        labels = lax.slice_in_dim(labels, step // 2, None, step, axis)
    return labels


def _soft_dice(probability: jax.Array, target: jax.Array) -> jax.Array:
    """Return the soft Dice of each patch, the mean over classes, `[B]` from `[B, d, h, w, classes]`."""
    overlap = (probability * target).sum((1, 2, 3))
    sizes = probability.sum((1, 2, 3)) + target.sum((1, 2, 3))
    return ((2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean(-1)


# The table.

LOGGED_ONLY = None  # the weight of a term that is logged and not trained on


@dataclass(frozen=True)
class Loss:
    """One entry of the table: a term of the objective, or a metric that is only logged."""

    column: str  # its name in `log.csv` and on TensorBoard
    compute: Callable[[Any, Any], Term]  # from `ClipInputs` or `PatchInputs`, and the model's config
    weight: str | float | None  # a field of `LossConfig`, a fixed weight, or LOGGED_ONLY
    in_segmentation: bool = True  # whether L_seg contains it
    active: Callable[[Any], bool] = lambda model: True  # whether a model with this config has it
    optional: bool = False  # neither computed nor logged if its weight is 0


# By the kind of model, in the order in which the objective adds them.
LOSSES: dict[str, tuple[Loss, ...]] = {
    "sam2": (
        Loss("loss_bce", _bce, weight="bce"),
        Loss("loss_focal", _focal, weight="focal", optional=True),
        Loss("loss_dice", _dice, weight="dice"),
        Loss("loss_iou", _iou, weight="iou"),
        Loss("loss_object_score", _object_score, weight="object_score"),
        Loss("dice", _hard_dice, weight=LOGGED_ONLY),
        Loss("loss_srpp", _srpp, weight="srpp", in_segmentation=False, active=lambda model: model.srpp),
        Loss("loss_bd", _boundary, weight="bd", in_segmentation=False, active=lambda model: model.bd),
    ),
    "unet": (
        Loss("loss_ce", patch_cross_entropy, weight="ce"),
        Loss("loss_dice", patch_dice, weight="dice"),
        Loss("dice", patch_hard_dice, weight=LOGGED_ONLY),
    ),
}


def used_losses(losses: Sequence[Loss], weights: LossConfig | None) -> tuple[Loss, ...]:
    """Return the losses without the optional ones whose weight is 0; without weights, without all optional ones."""
    return tuple(
        loss
        for loss in losses
        if not loss.optional or (weights is not None and isinstance(loss.weight, str) and getattr(weights, loss.weight))
    )


def compute_terms(losses: Sequence[Loss], inputs: Any, model: AnyModelConfig) -> dict[str, Term]:
    """Return the terms of a batch by column, for the losses that the model has."""
    return {loss.column: loss.compute(inputs, model) for loss in losses if loss.active(model)}
