"""Objective `L = L_seg + lambda_srpp L_srpp + lambda_bd L_bd` (paper): the weighted sum of the table of losses.

The table is `losses.LOSSES`. A term that a model returns without an entry, and a weight of `LossConfig` without an
entry, are errors before the first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.config import LossConfig
from sam2_3dmed_jax.training.losses import LOSSES, Loss, Term
from sam2_3dmed_jax.training.unroll import Batch

Weight = float | tuple[tuple[int, float], ...]  # a number, or the knots of a schedule
Divisors = dict[str, jax.Array]  # of the terms, by column


def weight_at(weight: Weight, step: jax.Array) -> jax.Array:
    """Return the weight of a loss at a step: a number, or linear between the knots of a schedule."""
    if isinstance(weight, tuple):
        steps, values = zip(*weight, strict=True)
        return jnp.interp(step, jnp.array(steps, jnp.float32), jnp.array(values, jnp.float32))
    return jnp.asarray(weight, jnp.float32)


def log_columns(losses: Sequence[Loss]) -> tuple[str, ...]:
    """Return the columns of the log after `loss`: L_seg, what the objective adds to it, its terms, and metrics."""
    weighted = [loss for loss in losses if loss.weight is not None]
    return (
        "loss_seg",
        *(loss.column for loss in weighted if not loss.in_segmentation),
        *(loss.column for loss in weighted if loss.in_segmentation),
        *(loss.column for loss in losses if loss.weight is None),
    )


def check_loss_weights(weights: LossConfig) -> None:
    """Check that each weight of the config belongs to a loss, and that each loss has its weight.

    Raises:
        ValueError: one of them is missing.
    """
    fields = {field.name for field in dataclasses.fields(weights)}
    used = {loss.weight for losses in LOSSES.values() for loss in losses if isinstance(loss.weight, str)}
    if unused := sorted(fields - used):
        raise ValueError(
            f"training.loss: no loss has the weight {', '.join(unused)}; add its entry to LOSSES in "
            "training/losses.py, or remove the field from LossConfig"
        )
    if missing := sorted(used - fields):
        raise ValueError(
            f"training/losses.py: an entry of LOSSES has the weight {', '.join(missing)}, which is not a field of "
            "LossConfig; add the field, or give the entry a number or LOGGED_ONLY"
        )


def check_terms(columns: Iterable[str], losses: Sequence[Loss]) -> None:
    """Check that the table lists each term, so that none is returned but not trained.

    Raises:
        ValueError: a term without an entry.
    """
    if unknown := sorted(set(columns) - {loss.column for loss in losses}):
        raise ValueError(
            f"training/losses.py: the model returns {', '.join(unknown)} without an entry in LOSSES; add an entry "
            "with its weight, or with LOGGED_ONLY"
        )


def term_divisors(
    forward: Callable[[Batch], Any], terms: Callable[[Any, Batch], dict[str, Term]], batch: Batch
) -> Divisors:
    """Return the divisors of a batch's terms. They depend on the batch alone: the compiler drops the forward pass."""
    outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(forward, batch))
    return {column: term.divisor for column, term in terms(outputs, batch).items()}


def objective(
    terms: dict[str, Term],
    losses: Sequence[Loss],
    weights: LossConfig,
    step: jax.Array,
    sum_divisors: Callable[[Divisors], Divisors] = lambda divisors: divisors,
    divisors: Divisors | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss, and by column `loss`, `loss_seg` and the value of each term.

    For a part of a batch they are its shares, whose sum over the parts is the value of the whole batch.

    Args:
        terms: of the batch or part, by column.
        losses: the table of the model's kind.
        weights: of the losses.
        step: int32, for weights that are schedules.
        sum_divisors: sums divisors over the devices that hold the other parts.
        divisors: of the whole batch, if its parts are computed one after the other.

    Raises:
        ValueError: a term without an entry in the table.
    """
    check_terms(terms, losses)
    divisors = divisors or sum_divisors({column: term.divisor for column, term in terms.items()})
    values = {column: Term(term.total, divisors[column]).mean() for column, term in terms.items()}
    weighted = [loss for loss in losses if loss.weight is not None and loss.column in terms]
    total = jnp.zeros(())
    for loss in weighted:
        if loss.in_segmentation:
            total = total + weight_at(_weight(loss, weights), step) * values[loss.column]
    values["loss_seg"] = total
    for loss in weighted:
        if not loss.in_segmentation:
            total = total + weight_at(_weight(loss, weights), step) * values[loss.column]
    values["loss"] = total
    return total, values


def _weight(loss: Loss, weights: LossConfig) -> Weight:
    """Return the weight of a loss: a field of the config, or its own number."""
    weight: Weight = getattr(weights, loss.weight) if isinstance(loss.weight, str) else loss.weight  # type: ignore[assignment]
    return weight
