"""Softmax attention by blocks of queries and keys, for platforms without a kernel of their own.

Products are XLA's, small enough that their scores stay in the cache; the running maximum and sum are those of Milakov
and Gimelshein (2018). A block of keys that no row may attend to costs nothing, forward or backward: the empty slots of
a memory bank. `forward` and `backward` are called as those of `flash_attention.py` are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sam2_3dmed_jax.sam2.flash_kernels import MASKED
from sam2_3dmed_jax.sam2.layers import precision_of

# Scores of a row and head that are held at once; 2^20 float32 are 4 MiB. On a CPU, an eighth of them takes a quarter
# longer, and blocks of a few whole rows, whose products are thin, three times as long.
SCORES = 1 << 20
LEAST_KEYS = 128


class Softmax(NamedTuple):
    """Of the keys seen so far, by query: what is needed to add more. Leading axes `[B, heads, queries]`."""

    maximum: jax.Array  # float32 [..., 1]
    sums: jax.Array  # float32 [..., dv + 1]: of weighted values, and of weights


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None, scores: int = SCORES
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention as `attention.attend` defines it.

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None where all keys count.
        scores: of a row and head that are held at once.

    Returns:
        The attention `[B, N, heads, dv]` in `v`'s dtype, and the logsumexp of each query's scores, float32
        `[B, heads, N]`, for `backward`. Of a row without valid keys both are finite.
    """
    b, n, heads, _ = q.shape
    rows, keys = _sizes(n, k.shape[1], scores)
    k, v = _by_head(k), with_ones(_by_head(v))

    def of_queries(q: jax.Array) -> Softmax:
        def add(softmax: Softmax, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple[Softmax, None]:
            return add_keys(softmax, q, k, v, valid), None

        start = Softmax(
            jnp.full((b, heads, rows, 1), MASKED, jnp.float32),
            jnp.zeros((b, heads, rows, v.shape[-1]), jnp.float32),
        )
        return _over_keys(add, lambda softmax: (softmax, None), start, (k, v, valid), keys)[0]

    softmax = lax.map(of_queries, _blocks(_by_head(_scaled(q)), rows))
    out, total = softmax.sums[..., :-1], softmax.sums[..., -1:]
    out = out / jnp.where(total > 0, total, 1)
    logsumexp = softmax.maximum + jnp.log(jnp.where(total > 0, total, 1))
    return _by_token(_joined(out)).astype(v.dtype), _joined(logsumexp)[..., 0]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    out: jax.Array,
    logsumexp: jax.Array,
    gradient: jax.Array,
    scores: int = SCORES,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `forward` with respect to `q`, `k` and `v` (Dao et al. 2022, appendix B.2).

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None.
        out: `[B, N, heads, dv]` as `forward` gave it.
        logsumexp: `[B, heads, N]` as `forward` gave it.
        gradient: of the loss with respect to `out`, like it.
        scores: of a row and head that are held at once.

    Returns:
        Gradients like `q`, `k` and `v`.
    """
    b, n, heads, _ = q.shape
    rows, keys = _sizes(n, k.shape[1], scores)
    mean = jnp.einsum("bnhd,bnhd->bhn", out.astype(jnp.float32), gradient.astype(jnp.float32))
    per_query = (_by_head(_scaled(q)), _by_head(gradient), logsumexp[..., None], mean[..., None])
    by_query = tuple(_blocks(x, rows) for x in per_query)

    def add(of_q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, tuple]:
        def one(of_keys: tuple, at: tuple) -> tuple[tuple, jax.Array]:
            (of_k, of_v), (of_q, q, gradient, logsumexp, mean) = of_keys, at
            weights = jnp.exp(_masked(_product("bhnd,bhmd->bhnm", q, k), valid) - logsumexp)
            change = weights * (_product("bhnd,bhmd->bhnm", gradient, v) - mean)
            weights, change = weights.astype(v.dtype), change.astype(v.dtype)
            of_k = of_k + _product("bhnm,bhnd->bhmd", change, q)
            of_v = of_v + _product("bhnm,bhnd->bhmd", weights, gradient)
            return (of_k, of_v), of_q + _product("bhnm,bhmd->bhnd", change, k)

        of_keys, of_q = lax.scan(one, nothing(k, v), (of_q, *by_query))
        return of_q, of_keys

    def nothing(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)

    k, v = _by_head(k), _by_head(v)
    start = jnp.zeros(by_query[0].shape, jnp.float32)
    of_q, (of_k, of_v) = _over_keys(
        add, lambda of_q: (of_q, nothing(k[:, :, :keys], v[:, :, :keys])), start, (k, v, valid), keys
    )
    of_q = _scaled(_by_token(_joined(of_q)))
    return of_q.astype(q.dtype), _by_token(of_k).astype(k.dtype), _by_token(of_v).astype(v.dtype)


def one_by_one(attention: Callable) -> Callable:
    """`forward` or `backward`, rows and heads one by one: the blocks of all of them would not fit a CPU's cache."""

    def apply(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None, *rest: jax.Array) -> tuple:
        b, _, heads, _ = q.shape
        if b * heads == 1:
            return attention(q, k, v, valid, *rest)
        spread = valid if valid is None else jnp.repeat(valid, heads, axis=0)[:, None]
        given = (*map(_alone, (q, k, v)), spread, *map(_alone, rest))
        found = lax.map(lambda row: attention(*row), given)
        return tuple(_together(x, b, heads) for x in found)

    return apply


def _alone(x: jax.Array) -> jax.Array:
    """`[B, N, heads, c]` to `[B * heads, 1, N, 1, c]`, or `[B, heads, N]` to `[B * heads, 1, 1, N]`."""
    if x.ndim == 3:
        return x.reshape(-1, 1, 1, x.shape[-1])
    return _by_head(x).reshape(-1, 1, x.shape[1], 1, x.shape[-1])


def _together(x: jax.Array, b: int, heads: int) -> jax.Array:
    """Undo `_alone`."""
    if x.ndim == 4:
        return x.reshape(b, heads, -1)
    return _by_token(x.reshape(b, heads, x.shape[2], x.shape[-1]))


def add_keys(softmax: Softmax | None, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> Softmax:
    """Attend to some more keys: `q [B, heads, n, d]` scaled, `k` and `v [B, heads, m, ...]`, `v` with ones."""
    scores = _masked(_product("bhnd,bhmd->bhnm", q, k), valid)
    maximum = lax.stop_gradient(_row_maximum(scores))
    if softmax is not None:
        maximum = jnp.maximum(maximum, softmax.maximum)
    weights = jnp.exp(scores - maximum).astype(v.dtype)
    sums = _product("bhnm,bhmd->bhnd", weights, v)
    if softmax is not None:
        sums = sums + softmax.sums * jnp.exp(softmax.maximum - maximum)
    return Softmax(maximum, sums)


def with_ones(v: jax.Array) -> jax.Array:
    """Values and a column of ones: their product with the weights is also the weights' sum, without another pass."""
    return jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)


def _row_maximum(scores: jax.Array) -> jax.Array:
    """Over the last axis, kept as 1. XLA's reduction of rows goes number by number on CPU; halves meet in vectors."""
    return lax.platform_dependent(scores, cpu=_maximum_by_halves, default=lambda x: x.max(-1, keepdims=True))


def _maximum_by_halves(scores: jax.Array) -> jax.Array:
    while scores.shape[-1] > 64 and scores.shape[-1] % 2 == 0:
        half = scores.shape[-1] // 2
        scores = jnp.maximum(scores[..., :half], scores[..., half:])
    return scores.max(-1, keepdims=True)


def _masked(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    return scores if valid is None else jnp.where(valid[:, None, None, :], scores, MASKED)


def _product(what: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(what, x, y, precision=precision_of(y.dtype), preferred_element_type=jnp.float32)


def _over_keys(add: Callable, skip: Callable, carry: object, arrays: tuple, size: int) -> tuple:
    """Scan `add(carry, k, v, valid)` over blocks of `size` keys and a shorter one, with `skip` where none is valid.

    What each block gives is joined along the axis of keys.
    """
    k, v, valid = arrays

    def block(carry: object, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple:
        if valid is None:
            return add(carry, k, v, None)
        return lax.cond(valid.any(), add, lambda carry, *_: skip(carry), carry, k, v, valid)

    def step(carry: object, number: jax.Array) -> tuple:
        at = number * size
        part = None if valid is None else lax.dynamic_slice_in_dim(valid, at, size, axis=1)
        return block(
            carry,
            lax.dynamic_slice_in_dim(k, at, size, axis=2),
            lax.dynamic_slice_in_dim(v, at, size, axis=2),
            part,
        )

    whole = k.shape[2] // size
    given: Any
    carry, given = lax.scan(step, carry, jnp.arange(whole))
    given = jax.tree.map(_joined, given)
    if rest := k.shape[2] % size:
        at = whole * size
        carry, last = add(carry, k[:, :, at:], v[:, :, at:], None if valid is None else valid[:, at:])
        given = jax.tree.map(lambda x, y: jnp.concatenate([x, y[:, :, :rest]], axis=2), given, last)
    return carry, given


def _sizes(n: int, m: int, scores: int) -> tuple[int, int]:
    """Queries and keys of a block: equal blocks of queries, and a power of two of keys, about as many."""
    keys = min(m, max(LEAST_KEYS, 1 << (scores.bit_length() - 1) // 2))
    count = min(n, math.ceil(n * keys / scores))
    while n % count:
        count += 1
    return n // count, keys


def _scaled(q: jax.Array) -> jax.Array:
    return q * (1.0 / math.sqrt(q.shape[-1]))


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """`[B, heads, N, c]` to `[N / size, B, heads, size, c]`."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, x.shape[-1]), 2, 0)


def _joined(blocks: jax.Array) -> jax.Array:
    """Undo `_blocks`."""
    x = jnp.moveaxis(blocks, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _by_head(x: jax.Array) -> jax.Array:
    """`[B, N, heads, c]` to `[B, heads, N, c]`, and back (`_by_token`)."""
    return jnp.swapaxes(x, 1, 2)


_by_token = _by_head
