"""Histogram of logits inside and outside of objects, from which the temperature of a checkpoint is fitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.metrics.reliability import fit_temperature

LIMIT = 32.0  # logits beyond it are in the outermost bins: their probability differs from 0 or 1 by 1e-14
BINS = 1024


def logit_counts(logits: jax.Array, inside: jax.Array, valid: jax.Array) -> jax.Array:
    """Count pixels by logit and by side of the reference.

    Args:
        logits: float, of any shape.
        inside: bool of the same shape, whether a pixel is inside of its object.
        valid: bool of the same shape, which pixels to count.

    Returns:
        int32 `[BINS, 2]`: pixels outside and inside of the object.
    """
    bins = jnp.floor((logits + LIMIT) * (BINS / (2 * LIMIT))).clip(0, BINS - 1).astype(jnp.int32)
    counts = jnp.zeros(2 * BINS, jnp.int32)
    return counts.at[2 * bins + inside].add(valid.astype(jnp.int32)).reshape(BINS, 2)


def temperature_of(counts: np.ndarray) -> float | None:
    """Return the temperature for counts `[BINS, 2]`, or None where it cannot be fitted."""
    centres = (np.arange(BINS) + 0.5) * (2 * LIMIT / BINS) - LIMIT
    return fit_temperature(centres, inside=counts[:, 1], outside=counts[:, 0])
