"""Steps of softmax attention that its implementations share: layouts, scaling, masking and products.

The implementations are `blocked_attention.py`, `wide_attention.py`, `flash_attention.py` and `triton_attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.sam2.layers import precision_of

MASKED = -1e30  # score of a masked key: finite, and without weight if there is any valid key

AttentionFunction = Callable[..., tuple[jax.Array, ...]]  # `forward` or `backward` of an implementation


def scale(q: jax.Array) -> jax.Array:
    """Return `q [..., d]` divided by the square root of `d`."""
    return q * (1.0 / math.sqrt(q.shape[-1]))


def product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return an einsum of two arrays, accumulated in float32 with the precision of `y`'s dtype."""
    return jnp.einsum(subscripts, x, y, precision=precision_of(y.dtype), preferred_element_type=jnp.float32)


def fill_of_keys(valid: jax.Array) -> jax.Array:
    """Map `valid [B, M]` to float32 `[B, M]`: 1 for a key whose score is computed, otherwise the score that it gets.

    The score `MASKED` gives no weight. In a row without valid keys all scores are 0, so that the result is the mean of
    the values and the logsumexp keeps its precision.
    """
    return jnp.where(valid, 1.0, jnp.where(valid.any(axis=1, keepdims=True), MASKED, 0.0))


def weighted_means(out: jax.Array, gradient: jax.Array) -> jax.Array:
    """Return the mean gradient of each query's scores, weighted by the softmax: float32 `[B, heads, N]`.

    The gradient of softmax subtracts it (Dao et al. 2022, appendix B.2). `out` and `gradient` are `[B, N, heads, dv]`.
    """
    return jnp.einsum("bnhd,bnhd->bhn", out.astype(jnp.float32), gradient.astype(jnp.float32))


def heads_first(x: jax.Array) -> jax.Array:
    """Map `[B, N, heads, c]` to `[B, heads, N, c]`; `tokens_first` is the inverse, which is the same swap."""
    return jnp.swapaxes(x, 1, 2)


tokens_first = heads_first


def split_blocks(x: jax.Array, size: int) -> jax.Array:
    """Map `[B, heads, N, c]` to `[N / size, B, heads, size, c]`."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, x.shape[-1]), 2, 0)


def join_blocks(blocks: jax.Array) -> jax.Array:
    """Undo `split_blocks`."""
    x = jnp.moveaxis(blocks, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def equal_blocks(n: int, least: int) -> int:
    """Return the size of the fewest equal blocks of `n` tokens that are at least `least` blocks."""
    count = min(n, max(1, least))
    while n % count:
        count += 1
    return n // count
