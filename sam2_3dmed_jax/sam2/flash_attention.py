"""Flash attention for TPU in Pallas (Dao et al. 2022): softmax attention whose scores never leave the chip.

`forward` walks the keys under each block of queries, with the running maximum and sum of Milakov and Gimelshein (2018).
`backward` recomputes the weights from the stored logsumexp and makes all three gradients in one pass: keys outside,
queries inside, while the queries' whole gradient waits in VMEM, so five products do where two kernels need seven.
`attention.attend` decides when they run and ties them together.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam2_3dmed_jax.sam2.flash_kernels import LANES, MASKED, backward_kernel, forward_kernel

# The largest block of queries and keys, for 16-bit operands; half of each for float32. The v5e compiler schedules
# 6.3e-3 cycles a score forward and 14.5e-3 backward for it (78 and 94 % of the matrix unit's peak at d = 256, dv = 64),
# and with the gradient of 4096 queries it fits the 16 MiB of VMEM that a v4 has.
BLOCK = (1024, 640)
VMEM_BYTES = 64 << 20  # that a kernel may ask for
MAX_QUERY_GRADIENT = 1 << 20  # float32 numbers of the queries' gradient that `backward` holds in VMEM


def fits(n: int, d: int) -> bool:
    """Whether `backward` can hold the gradient of `n` queries of `d` channels: at 1024 px, and just so."""
    return n * pl.cdiv(d, LANES) * LANES <= MAX_QUERY_GRADIENT


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    *,
    block: tuple[int, int] = BLOCK,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention as `attention.attend` defines it.

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None where all keys count.
        block: the largest numbers of 16-bit queries and keys that meet at once.
        interpret: run on any platform, slowly.

    Returns:
        The attention `[B, N, heads, dv]` in `v`'s dtype, and the logsumexp of each query's scores, float32
        `[B, heads, N]`, for `backward`.
    """
    (b, n, heads, d), m, dv = q.shape, k.shape[1], v.shape[-1]
    bq, bk = _blocks(n, m, block, v.dtype)
    rows, cols = pl.cdiv(n, bq), pl.cdiv(m, bk)
    out, logsumexp = pl.pallas_call(
        functools.partial(forward_kernel, keys=m),
        name="flash_attention_forward",
        grid=(b * heads, rows, cols),
        in_specs=[
            pl.BlockSpec((1, 1, bk), lambda g, i, j: (lax.div(g, heads), 0, j)),
            pl.BlockSpec((1, bq, d), lambda g, i, j: (g, i, 0)),
            pl.BlockSpec((1, bk, d), lambda g, i, j: (g, j, 0)),
            pl.BlockSpec((1, bk, dv), lambda g, i, j: (g, j, 0)),
        ],
        out_specs=[
            pl.BlockSpec((1, bq, dv), lambda g, i, j: (g, i, 0)),
            pl.BlockSpec((1, 1, bq), lambda g, i, j: (g, 0, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((b * heads, rows * bq, dv), v.dtype),
            jax.ShapeDtypeStruct((b * heads, 1, rows * bq), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((1, bq), jnp.float32),
            pltpu.VMEM((1, bq), jnp.float32),
            pltpu.VMEM((dv, bq), jnp.float32),
        ],
        cost_estimate=pl.CostEstimate(
            flops=2 * b * heads * n * m * (d + dv),
            transcendentals=b * heads * n * m,
            # Each block of queries reads all keys and values.
            bytes_accessed=q.nbytes + rows * (k.nbytes + v.nbytes) + b * heads * n * (dv * v.dtype.itemsize + 4),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
    )(_fill(valid, b, m, cols * bk), _queries(_scaled(q), rows * bq), _by_head(k), _by_head(v))
    return _by_token(out[:, :n], heads), logsumexp[:, 0, :n].reshape(b, heads, n)


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    out: jax.Array,
    logsumexp: jax.Array,
    gradient: jax.Array,
    *,
    block: tuple[int, int] = BLOCK,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `forward` with respect to `q`, `k` and `v`.

    Args:
        q: `[B, N, heads, d]`; N x d is one that `fits`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None.
        out: `[B, N, heads, dv]` as `forward` gave it.
        logsumexp: `[B, heads, N]` as `forward` gave it.
        gradient: of the loss with respect to `out`, like it.
        block: the largest numbers of 16-bit queries and keys that meet at once.
        interpret: run on any platform, slowly.

    Returns:
        Gradients like `q`, `k` and `v`.
    """
    (b, n, heads, d), m, dv = q.shape, k.shape[1], v.shape[-1]
    bq, bk = _blocks(n, m, block, v.dtype)
    rows, cols = pl.cdiv(n, bq), pl.cdiv(m, bk)
    # The softmax's gradient subtracts each row's mean, which is this (Dao et al. 2022, appendix B.2).
    mean = jnp.einsum("bnhd,bnhd->bhn", out.astype(jnp.float32), gradient.astype(jnp.float32))
    statistics = jnp.stack([logsumexp, mean], axis=2).reshape(b * heads, 2, n)
    statistics = jnp.pad(statistics, ((0, 0), (0, 0), (0, rows * bq - n)))
    per_query = d * q.dtype.itemsize + dv * v.dtype.itemsize + 8

    def by_query(g: jax.Array, j: jax.Array, i: jax.Array) -> tuple:
        return g, i, 0

    def by_key(g: jax.Array, j: jax.Array, i: jax.Array) -> tuple:
        return g, j, 0

    grad_q, grad_k, grad_v = pl.pallas_call(
        backward_kernel,
        name="flash_attention_backward",
        grid=(b * heads, cols, rows),
        in_specs=[
            pl.BlockSpec((1, 1, bk), lambda g, j, i: (lax.div(g, heads), 0, j)),
            pl.BlockSpec((1, 2, bq), lambda g, j, i: (g, 0, i)),
            pl.BlockSpec((1, bq, d), by_query),
            pl.BlockSpec((1, bq, dv), by_query),
            pl.BlockSpec((1, bk, d), by_key),
            pl.BlockSpec((1, bk, dv), by_key),
        ],
        out_specs=[
            # Written under the last block of keys only, and sent out when the index moves on.
            pl.BlockSpec((1, bq, d), lambda g, j, i: (g, jnp.where(j == cols - 1, i, 0), 0)),
            pl.BlockSpec((1, bk, d), by_key),
            pl.BlockSpec((1, bk, dv), by_key),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((b * heads, rows * bq, d), q.dtype),
            jax.ShapeDtypeStruct((b * heads, m, d), k.dtype),
            jax.ShapeDtypeStruct((b * heads, m, dv), v.dtype),
        ],
        scratch_shapes=[
            pltpu.VMEM((bk, LANES), jnp.float32),
            pltpu.VMEM((bk, d), k.dtype),
            pltpu.VMEM((bk, dv), v.dtype),
            pltpu.VMEM((rows, bq, d), jnp.float32),
            pltpu.VMEM((bk, d), jnp.float32),
            pltpu.VMEM((bk, dv), jnp.float32),
        ],
        cost_estimate=pl.CostEstimate(
            flops=2 * b * heads * n * m * (3 * d + 2 * dv),
            transcendentals=b * heads * n * m,
            # Each block of keys reads all queries and gradients.
            bytes_accessed=2 * (k.nbytes + v.nbytes) + q.nbytes + cols * b * heads * n * per_query,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
    )(
        _fill(valid, b, m, cols * bk),
        statistics,
        _queries(_scaled(q), rows * bq),
        _queries(gradient, rows * bq),
        _by_head(k),
        _by_head(v),
    )
    return _scaled(_by_token(grad_q[:, :n], heads)), _by_token(grad_k, heads), _by_token(grad_v, heads)


def _fill(valid: jax.Array | None, b: int, m: int, padded: int) -> jax.Array:
    """Float32 `[B, 1, padded]`: 1 for a key with a score of its own, else the score that it counts with.

    `MASKED` gives no weight. Where no key is valid all score 0: the mean, and a logsumexp that keeps its digits.
    """
    if valid is None:
        valid = jnp.ones((b, m), bool)
    fill = jnp.where(valid, 1.0, jnp.where(valid.any(axis=1, keepdims=True), MASKED, 0.0))
    return jnp.pad(fill, ((0, 0), (0, padded - m)), constant_values=MASKED)[:, None]


def _blocks(n: int, m: int, largest: tuple[int, int], dtype: jnp.dtype) -> tuple[int, int]:
    """Queries and keys of a block: as few blocks as `largest` allows, then as small as whole lanes allow."""
    halves = dtype.itemsize // 2
    counts = (pl.cdiv(length * halves, most) for length, most in zip((n, m), largest, strict=True))
    bq, bk = (pl.cdiv(pl.cdiv(length, count), LANES) * LANES for length, count in zip((n, m), counts, strict=True))
    return bq, bk


def _scaled(q: jax.Array) -> jax.Array:
    return q * (1.0 / math.sqrt(q.shape[-1]))


def _queries(x: jax.Array, padded: int) -> jax.Array:
    """`[B, N, heads, c]` to `[B x heads, padded, c]`, filled up with zeros."""
    x = _by_head(x)
    return jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0)))


def _by_head(x: jax.Array) -> jax.Array:
    """`[B, N, heads, c]` to `[B x heads, N, c]`."""
    return jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3])


def _by_token(x: jax.Array, heads: int) -> jax.Array:
    """`[B x heads, N, c]` to `[B, N, heads, c]`."""
    return jnp.swapaxes(x.reshape(-1, heads, *x.shape[1:]), 1, 2)
