"""Pallas kernels of flash attention for one block of queries and one block of keys on a TPU core.

Scores have keys as rows, so that values per query (its maximum, its sum) are along lanes: one row of numbers instead of
a column of mostly empty registers. `flash_attention.py` defines the grid of blocks. `fill [1, 1, bk]` is 1 for a key
whose score is computed, and otherwise the score that the key gets; the contents of a block beyond the last key or query
are undefined.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from sam2_3dmed_jax.sam2.attention_steps import MASKED
from sam2_3dmed_jax.sam2.layers import precision_of

LANES = 128  # lanes of a TPU's vector registers

Ref = Any  # a Pallas reference to a block; Pallas does not annotate its type


def forward_kernel(
    fill_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
    out_ref: Ref, logsumexp_ref: Ref,
    max_ref: Ref, sum_ref: Ref, acc_ref: Ref,
    *,
    keys: int,
) -> None:  # fmt: skip
    """Add a block of keys to the running softmax of a block of queries; the grid is (head, queries, keys).

    `keys` is the number of keys of the whole attention.
    """
    j = pl.program_id(2)

    @pl.when(j == 0)
    def _start() -> None:
        max_ref[...] = jnp.full_like(max_ref, MASKED)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    # Empty slots of a memory bank are whole blocks whose keys have no weight.
    @pl.when(fill_ref[0].max() > MASKED)
    def _add_keys() -> None:
        fill, v = _as_column(fill_ref[0]), v_ref[0]
        if keys % v.shape[0]:  # values beyond the last key are undefined, and NaN times a weight of 0 is NaN
            v = jnp.where(fill > MASKED, v, 0)
        scores = _product(k_ref[0], q_ref[0], (1, 1))  # [bk, bq]
        scores = jnp.where(fill > 0, scores, fill)
        largest = jnp.maximum(max_ref[...], scores.max(axis=0, keepdims=True))
        weights = jnp.exp(scores - largest)
        fade = jnp.exp(max_ref[...] - largest)
        max_ref[...] = largest
        sum_ref[...] = fade * sum_ref[...] + weights.sum(axis=0, keepdims=True)
        acc_ref[...] = fade * acc_ref[...] + _product(v, weights.astype(v.dtype), (0, 0))

    @pl.when(j == pl.num_programs(2) - 1)
    def _finish() -> None:
        out_ref[0] = (acc_ref[...] / sum_ref[...]).T.astype(out_ref.dtype)
        logsumexp_ref[0] = max_ref[...] + jnp.log(sum_ref[...])


def backward_kernel(
    fill_ref: Ref, statistics_ref: Ref, q_ref: Ref, gradient_ref: Ref, k_ref: Ref, v_ref: Ref,
    dq_ref: Ref, dk_ref: Ref, dv_ref: Ref,
    fill_scratch: Ref, k_scratch: Ref, v_scratch: Ref, dq_scratch: Ref, dk_scratch: Ref, dv_scratch: Ref,
) -> None:  # fmt: skip
    """Add the gradients from a block of keys and a block of queries; the grid is (head, keys, queries).

    `statistics [1, 2, bq]` are each query's logsumexp and the mean that the gradient of softmax subtracts.
    """
    j, i = pl.program_id(1), pl.program_id(2)

    @pl.when(i == 0)
    def _start() -> None:
        fill = _as_column(fill_ref[0])
        fill_scratch[...] = jnp.broadcast_to(fill, fill_scratch.shape)
        # A key with a filled score neither gets nor causes a gradient, and blocks beyond the last key are undefined.
        k_scratch[...] = jnp.where(fill > 0, k_ref[0], 0)
        v_scratch[...] = jnp.where(fill > MASKED, v_ref[0], 0)
        dk_scratch[...] = jnp.zeros_like(dk_scratch)
        dv_scratch[...] = jnp.zeros_like(dv_scratch)

    @pl.when(j == 0)
    def _clear() -> None:
        dq_scratch[i] = jnp.zeros(dq_scratch.shape[1:], jnp.float32)

    fill, q, k, gradient = fill_scratch[:, :1], q_ref[0], k_scratch[...], gradient_ref[0]
    scores = _product(k, q, (1, 1))  # [bk, bq]
    weights = jnp.exp(jnp.where(fill > 0, scores, fill) - statistics_ref[0, :1])
    dv_scratch[...] += _product(weights.astype(gradient.dtype), gradient, (1, 0))
    dscores = weights * (_product(v_scratch[...], gradient, (1, 1)) - statistics_ref[0, 1:])
    dscores = dscores.astype(q.dtype)
    dk_scratch[...] += _product(dscores, q, (1, 0))
    dq_scratch[i] += _product(dscores, k, (0, 0))

    @pl.when(i == pl.num_programs(2) - 1)
    def _finish() -> None:
        # Without valid keys, all keys have weight but their scores were filled.
        dk_ref[0] = jnp.where(fill_scratch[:, :1] > 0, dk_scratch[...], 0).astype(dk_ref.dtype)
        dv_ref[0] = dv_scratch[...].astype(dv_ref.dtype)

    @pl.when(j == pl.num_programs(1) - 1)
    def _emit() -> None:
        dq_ref[0] = dq_scratch[i].astype(dq_ref.dtype)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Return the product of two matrices over one axis of each, accumulated in float32."""
    return lax.dot_general(
        a,
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision_of(b.dtype),
        preferred_element_type=jnp.float32,
    )


def _as_column(row: jax.Array) -> jax.Array:
    """Map `[1, n]` to `[n, 1]` through a matrix that the hardware can transpose."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]
