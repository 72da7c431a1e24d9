"""Softmax attention over all keys at once in XLA, for GPUs without a kernel.

A block of queries meets all keys in two large products, so that a GPU runs few kernels, and no loop or conditional
waits for the host. Masked keys are computed too. `forward` and `backward` have the signatures of the functions in
`flash_attention.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.sam2.attention_steps import (
    equal_blocks,
    fill_of_keys,
    heads_first,
    join_blocks,
    product,
    scale,
    split_blocks,
    tokens_first,
    weighted_means,
)

# The number of scores of all rows and heads that are held at once; 2^27 float32 are 512 MiB. One slice of 1024 px and
# its memories have 0.9 of it.
BLOCK_SCORES = 1 << 27


class Queries(NamedTuple):
    """Per-query inputs of the backward pass, `[B, heads, N, c]`."""

    q: jax.Array
    gradient: jax.Array
    logsumexp: jax.Array
    mean: jax.Array  # of the gradient of the scores, weighted by the softmax


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None, scores: int = BLOCK_SCORES
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax attention as `attention.attend` defines it.

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None if all keys are valid.
        scores: number of scores of all rows and heads that are held at once.

    Returns:
        The attention `[B, N, heads, dv]` in `v`'s dtype, and the logsumexp of each query's scores, float32
        `[B, heads, N]`, for `backward`. A row without valid keys gets the mean of its values.
    """
    rows = _rows_per_block(q, k, scores)
    k, v, fill = heads_first(k), heads_first(v), _fill(valid)

    def attend_from_block(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        block_scores = _scores(q, k, fill)
        maximum = block_scores.max(-1, keepdims=True)
        weights = jnp.exp(block_scores - maximum)
        total = weights.sum(-1, keepdims=True)
        # Normalising after the value product divides N x dv numbers instead of N x M.
        out = product("bhnm,bhmd->bhnd", weights.astype(v.dtype), v) / total
        return out.astype(v.dtype), maximum + jnp.log(total)

    q = heads_first(scale(q))
    if rows == q.shape[2]:
        out, logsumexp = attend_from_block(q)
    else:
        out, logsumexp = map(join_blocks, lax.map(attend_from_block, split_blocks(q, rows)))
    return tokens_first(out), logsumexp[..., 0]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    out: jax.Array,
    logsumexp: jax.Array,
    gradient: jax.Array,
    scores: int = BLOCK_SCORES,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of `forward` with respect to `q`, `k` and `v` (Dao et al. 2022, appendix B.2).

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None.
        out: `[B, N, heads, dv]`, result of `forward`.
        logsumexp: `[B, heads, N]`, result of `forward`.
        gradient: gradient of the loss with respect to `out`, of the same shape.
        scores: number of scores of all rows and heads that are held at once.

    Returns:
        Gradients with the shapes and dtypes of `q`, `k` and `v`.
    """
    rows = _rows_per_block(q, k, scores // 2)  # the weights and their gradients
    mean = weighted_means(out, gradient)
    queries = Queries(heads_first(scale(q)), heads_first(gradient), logsumexp[..., None], mean[..., None])
    k, v, fill = heads_first(k), heads_first(v), _fill(valid)

    def gradients_of_block(block: Queries) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        weights = jnp.exp(_scores(block.q, k, fill) - block.logsumexp)
        score_gradient = weights * (product("bhnd,bhmd->bhnm", block.gradient, v) - block.mean)
        if fill is not None:  # without valid keys, all keys have weight but their scores were filled
            score_gradient = jnp.where(fill > 0, score_gradient, 0)
        weights, score_gradient = weights.astype(v.dtype), score_gradient.astype(v.dtype)
        k_gradient = product("bhnm,bhnd->bhmd", score_gradient, block.q)
        v_gradient = product("bhnm,bhnd->bhmd", weights, block.gradient)
        return (k_gradient, v_gradient), product("bhnm,bhmd->bhnd", score_gradient, k)

    def add_block(sums: tuple[jax.Array, jax.Array], block: Queries) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        key_gradients, q_gradient = gradients_of_block(block)
        return (sums[0] + key_gradients[0], sums[1] + key_gradients[1]), q_gradient

    if rows == q.shape[1]:
        (k_gradient, v_gradient), q_gradient = gradients_of_block(queries)
    else:
        zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        blocks = Queries(*(split_blocks(x, rows) for x in queries))
        (k_gradient, v_gradient), q_gradient = lax.scan(add_block, zeros, blocks)
        q_gradient = join_blocks(q_gradient)
    return (
        scale(tokens_first(q_gradient)).astype(q.dtype),
        tokens_first(k_gradient).astype(k.dtype),
        tokens_first(v_gradient).astype(v.dtype),
    )


def _rows_per_block(q: jax.Array, k: jax.Array, scores: int) -> int:
    """Return the number of queries of a block whose scores, of all rows and heads, are at most `scores`."""
    b, n, heads, _ = q.shape
    return equal_blocks(n, math.ceil(b * heads * n * k.shape[1] / scores))


def _fill(valid: jax.Array | None) -> jax.Array | None:
    """Return `fill_of_keys` as `[B, 1, 1, M]`."""
    return None if valid is None else fill_of_keys(valid)[:, None, None]


def _scores(q: jax.Array, k: jax.Array, fill: jax.Array | None) -> jax.Array:
    """Return the scores of scaled queries `[B, heads, n, d]` and keys `[B, heads, M, d]`: float32 `[..., n, M]`."""
    scores = product("bhnd,bhmd->bhnm", q, k)
    return scores if fill is None else jnp.where(fill > 0, scores, fill)
