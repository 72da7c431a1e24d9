"""The two kernels of flash attention: what a TPU core does with one block of queries and one of keys.

Scores have keys as rows, so that what belongs to a query (its maximum, its sum) lies along lanes: a row of numbers and
not a column of mostly empty registers. `flash_attention.py` walks the blocks. `fill [1, 1, bk]` is 1 for a key with a
score of its own, else the score that it counts with; beyond the last key or query a block holds anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from sam2_3dmed_jax.sam2.layers import precision_of

MASKED = -1e30  # as a score: no weight beside any key that counts, and finite
LANES = 128  # of a TPU's vector registers


def forward_kernel(fill_ref, q_ref, k_ref, v_ref, out_ref, logsumexp_ref, max_ref, sum_ref, acc_ref, *, keys: int):
    """Take a block of keys into the running softmax of a block of queries: grid (head, queries, keys)."""
    j = pl.program_id(2)

    @pl.when(j == 0)
    def _start():
        max_ref[...] = jnp.full_like(max_ref, MASKED)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    fill, v = _as_column(fill_ref[0]), v_ref[0]
    if keys % v.shape[0]:  # beyond the last key lies anything, and NaN times no weight is NaN
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
    def _finish():
        out_ref[0] = (acc_ref[...] / sum_ref[...]).T.astype(out_ref.dtype)
        logsumexp_ref[0] = max_ref[...] + jnp.log(sum_ref[...])


def backward_kernel(
    fill_ref, statistics_ref, q_ref, gradient_ref, k_ref, v_ref,
    dq_ref, dk_ref, dv_ref,
    fill_scratch, k_scratch, v_scratch, dq_scratch, dk_scratch, dv_scratch,
):  # fmt: skip
    """Give a block of keys and one of queries their parts of the gradients: grid (head, keys, queries).

    `statistics [1, 2, bq]` are each query's logsumexp and the mean that the softmax's gradient subtracts.
    """
    j, i = pl.program_id(1), pl.program_id(2)

    @pl.when(i == 0)
    def _start():
        fill = _as_column(fill_ref[0])
        fill_scratch[...] = jnp.broadcast_to(fill, fill_scratch.shape)
        # A key without a score of its own neither takes a gradient nor gives one, and beyond the last lies anything.
        k_scratch[...] = jnp.where(fill > 0, k_ref[0], 0)
        v_scratch[...] = jnp.where(fill > MASKED, v_ref[0], 0)
        dk_scratch[...] = jnp.zeros_like(dk_scratch)
        dv_scratch[...] = jnp.zeros_like(dv_scratch)

    @pl.when(j == 0)
    def _clear():
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
    def _finish():
        # Where no key is valid, all got weight and none a score of its own.
        dk_ref[0] = jnp.where(fill_scratch[:, :1] > 0, dk_scratch[...], 0).astype(dk_ref.dtype)
        dv_ref[0] = dv_scratch[...].astype(dv_ref.dtype)

    @pl.when(j == pl.num_programs(1) - 1)
    def _emit():
        dq_ref[0] = dq_scratch[i].astype(dq_ref.dtype)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices over one axis of each, accumulated in float32."""
    return lax.dot_general(
        a,
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision_of(b.dtype),
        preferred_element_type=jnp.float32,
    )


def _as_column(row: jax.Array) -> jax.Array:
    """`[1, n]` to `[n, 1]`, through a square that the hardware can turn."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]
