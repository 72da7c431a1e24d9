"""Softmax attention by blocks of queries and keys in XLA, for CPUs, and for TPUs where the flash kernel does not fit.

The blocks are small enough that their scores stay in the cache; the running maximum and sum follow Milakov and
Gimelshein (2018). A block of keys without valid keys is skipped, forward and backward, such as the empty slots of a
memory bank. `forward` and `backward` have the signatures of the functions in `flash_attention.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.sam2.attention_steps import (
    MASKED,
    AttentionFunction,
    equal_blocks,
    heads_first,
    join_blocks,
    product,
    scale,
    split_blocks,
    tokens_first,
    weighted_means,
)

# The number of scores of one row and head that are held at once; 2^20 float32 are 4 MiB. On a CPU, an eighth of it is
# 25 % slower, and blocks of a few whole rows, whose products are thin, take three times as long.
BLOCK_SCORES = 1 << 20
MIN_BLOCK_KEYS = 128

Carry = TypeVar("Carry")
Output = TypeVar("Output")


class RunningSoftmax(NamedTuple):
    """Softmax statistics over the keys so far; leading axes `[B, heads, queries]`."""

    maximum: jax.Array  # float32 [..., 1]
    sums: jax.Array  # float32 [..., dv + 1]: the weighted values, and last the weights


class QueryBlocks(NamedTuple):
    """Per-query inputs of the backward pass, as blocks `[blocks, B, heads, queries, ...]`."""

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
        scores: number of scores of one row and head that are held at once.

    Returns:
        The attention `[B, N, heads, dv]` in `v`'s dtype, and the logsumexp of each query's scores, float32
        `[B, heads, N]`, for `backward`. Both are finite for a row without valid keys.
    """
    b, n, heads, _ = q.shape
    rows, keys = _block_sizes(n, k.shape[1], scores)
    k, v = heads_first(k), append_ones(heads_first(v))

    def attend_from_block(q: jax.Array) -> RunningSoftmax:
        def add(
            softmax: RunningSoftmax, k: jax.Array, v: jax.Array, valid: jax.Array | None
        ) -> tuple[RunningSoftmax, None]:
            return accumulate_keys(softmax, q, k, v, valid), None

        start = RunningSoftmax(
            jnp.full((b, heads, rows, 1), MASKED, jnp.float32),
            jnp.zeros((b, heads, rows, v.shape[-1]), jnp.float32),
        )
        softmax, _ = _scan_key_blocks(add, lambda softmax: (softmax, None), start, k, v, valid, keys)
        return softmax

    softmax = lax.map(attend_from_block, split_blocks(heads_first(scale(q)), rows))
    out, total = softmax.sums[..., :-1], softmax.sums[..., -1:]
    out = out / jnp.where(total > 0, total, 1)
    logsumexp = softmax.maximum + jnp.log(jnp.where(total > 0, total, 1))
    return tokens_first(join_blocks(out)).astype(v.dtype), join_blocks(logsumexp)[..., 0]


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
        scores: number of scores of one row and head that are held at once.

    Returns:
        Gradients with the shapes and dtypes of `q`, `k` and `v`.
    """
    rows, keys = _block_sizes(q.shape[1], k.shape[1], scores)
    mean = weighted_means(out, gradient)[..., None]
    per_query = (heads_first(scale(q)), heads_first(gradient), logsumexp[..., None], mean)
    queries = QueryBlocks(*(split_blocks(x, rows) for x in per_query))

    k, v = heads_first(k), heads_first(v)
    add = functools.partial(_add_key_block_gradients, queries)
    no_gradients = _float32_zeros_like(k[:, :, :keys], v[:, :, :keys])
    start = jnp.zeros(queries.q.shape, jnp.float32)
    q_gradient, (k_gradient, v_gradient) = _scan_key_blocks(
        add, lambda q_gradient: (q_gradient, no_gradients), start, k, v, valid, keys
    )
    q_gradient = scale(tokens_first(join_blocks(q_gradient)))
    return (
        q_gradient.astype(q.dtype),
        tokens_first(k_gradient).astype(k.dtype),
        tokens_first(v_gradient).astype(v.dtype),
    )


def _add_key_block_gradients(
    queries: QueryBlocks, q_gradient: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Add a block of keys to the gradient of all queries; return it and the gradients of the block's `k` and `v`."""

    def add_query_block(
        key_gradients: tuple[jax.Array, jax.Array], block: tuple[jax.Array, QueryBlocks]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        (k_gradient, v_gradient), (q_gradient, (q, gradient, logsumexp, mean)) = key_gradients, block
        weights = jnp.exp(_mask(product("bhnd,bhmd->bhnm", q, k), valid) - logsumexp)
        score_gradient = weights * (product("bhnd,bhmd->bhnm", gradient, v) - mean)
        weights, score_gradient = weights.astype(v.dtype), score_gradient.astype(v.dtype)
        k_gradient = k_gradient + product("bhnm,bhnd->bhmd", score_gradient, q)
        v_gradient = v_gradient + product("bhnm,bhnd->bhmd", weights, gradient)
        return (k_gradient, v_gradient), q_gradient + product("bhnm,bhmd->bhnd", score_gradient, k)

    key_gradients, q_gradient = lax.scan(add_query_block, _float32_zeros_like(k, v), (q_gradient, queries))
    return q_gradient, key_gradients


def per_row_and_head(attention: AttentionFunction) -> AttentionFunction:
    """Return `forward` or `backward` applied to one row and head at a time.

    The blocks of all rows and heads together do not fit the cache of a CPU.
    """

    def apply(
        q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None, *rest: jax.Array
    ) -> tuple[jax.Array, ...]:
        b, _, heads, _ = q.shape
        if b * heads == 1:
            return attention(q, k, v, valid, *rest)
        valid_per_head = valid if valid is None else jnp.repeat(valid, heads, axis=0)[:, None]
        arguments = (*map(_split_heads, (q, k, v)), valid_per_head, *map(_split_heads, rest))
        results: tuple[jax.Array, ...] = lax.map(lambda row: attention(*row), arguments)
        return tuple(_join_heads(x, b, heads) for x in results)

    return apply


def _split_heads(x: jax.Array) -> jax.Array:
    """Map `[B, N, heads, c]` to `[B * heads, 1, N, 1, c]`, or `[B, heads, N]` to `[B * heads, 1, 1, N]`."""
    if x.ndim == 3:
        return x.reshape(-1, 1, 1, x.shape[-1])
    return heads_first(x).reshape(-1, 1, x.shape[1], 1, x.shape[-1])


def _join_heads(x: jax.Array, b: int, heads: int) -> jax.Array:
    """Undo `_split_heads`."""
    if x.ndim == 4:
        return x.reshape(b, heads, -1)
    return tokens_first(x.reshape(b, heads, x.shape[2], x.shape[-1]))


def accumulate_keys(
    softmax: RunningSoftmax | None, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None
) -> RunningSoftmax:
    """Attend to more keys.

    Args:
        softmax: statistics over the keys so far, or None before the first ones.
        q: scaled queries `[B, heads, n, d]`.
        k: `[B, heads, m, d]`.
        v: `[B, heads, m, dv + 1]`, from `append_ones`.
        valid: bool `[B, m]`, or None.

    Returns:
        The statistics over all keys.
    """
    scores = _mask(product("bhnd,bhmd->bhnm", q, k), valid)
    maximum = lax.stop_gradient(_row_maximum(scores))
    if softmax is not None:
        maximum = jnp.maximum(maximum, softmax.maximum)
    weights = jnp.exp(scores - maximum).astype(v.dtype)
    sums = product("bhnm,bhmd->bhnd", weights, v)
    if softmax is not None:
        sums = sums + softmax.sums * jnp.exp(softmax.maximum - maximum)
    return RunningSoftmax(maximum, sums)


def append_ones(v: jax.Array) -> jax.Array:
    """Append a channel of ones to values, so that their product with the weights also sums the weights."""
    return jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)


def _row_maximum(scores: jax.Array) -> jax.Array:
    """Return the maximum over the last axis, kept with length 1.

    On CPU, XLA reduces rows element by element, while the maximum of two halves is vectorised.
    """
    maximum: jax.Array = lax.platform_dependent(
        scores, cpu=_maximum_by_halves, default=lambda x: x.max(-1, keepdims=True)
    )
    return maximum


def _maximum_by_halves(scores: jax.Array) -> jax.Array:
    while scores.shape[-1] > 64 and scores.shape[-1] % 2 == 0:
        half = scores.shape[-1] // 2
        scores = jnp.maximum(scores[..., :half], scores[..., half:])
    return scores.max(-1, keepdims=True)


def _mask(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    return scores if valid is None else jnp.where(valid[:, None, None, :], scores, MASKED)


def _float32_zeros_like(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)


def _scan_key_blocks(
    add: Callable[[Carry, jax.Array, jax.Array, jax.Array | None], tuple[Carry, Output]],
    skip: Callable[[Carry], tuple[Carry, Output]],
    carry: Carry,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    size: int,
) -> tuple[Carry, Output]:
    """Scan `add(carry, k, v, valid)` over blocks of `size` keys and a shorter last one.

    `skip` replaces `add` for blocks without valid keys. The outputs are joined along the axis of keys.
    """

    def add_or_skip(carry: Carry, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple[Carry, Output]:
        if valid is None:
            return add(carry, k, v, None)
        result: tuple[Carry, Output] = lax.cond(valid.any(), add, lambda carry, *_: skip(carry), carry, k, v, valid)
        return result

    def step(carry: Carry, number: jax.Array) -> tuple[Carry, Output]:
        start = number * size
        block_valid = None if valid is None else lax.dynamic_slice_in_dim(valid, start, size, axis=1)
        return add_or_skip(
            carry,
            lax.dynamic_slice_in_dim(k, start, size, axis=2),
            lax.dynamic_slice_in_dim(v, start, size, axis=2),
            block_valid,
        )

    whole_blocks = k.shape[2] // size
    carry, outputs = lax.scan(step, carry, jnp.arange(whole_blocks))
    outputs = jax.tree.map(join_blocks, outputs)
    if rest := k.shape[2] % size:
        start = whole_blocks * size
        carry, last = add(carry, k[:, :, start:], v[:, :, start:], None if valid is None else valid[:, start:])
        outputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y[:, :, :rest]], axis=2), outputs, last)
    return carry, outputs


def _block_sizes(n: int, m: int, scores: int) -> tuple[int, int]:
    """Return the queries and keys per block: equal blocks of queries, and about as many keys, a power of two."""
    keys = min(m, max(MIN_BLOCK_KEYS, 1 << (scores.bit_length() - 1) // 2))
    return equal_blocks(n, math.ceil(n * keys / scores)), keys
