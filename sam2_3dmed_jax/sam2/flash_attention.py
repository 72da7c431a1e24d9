"""Flash attention for TPU in Pallas (Dao et al. 2022): softmax attention whose scores never leave the chip.

`forward` loops over the keys for each block of queries, with the running maximum and sum of Milakov and Gimelshein
(2018). `backward` recomputes the weights from the stored logsumexp and computes all three gradients in one pass: keys
in the outer loop, queries in the inner one, and the whole gradient of the queries in VMEM. This takes five products,
where two separate kernels take seven. `attention.attend` combines the two functions and decides when they run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam2_3dmed_jax.sam2.attention_steps import MASKED, fill_of_keys, heads_first, scale, weighted_means
from sam2_3dmed_jax.sam2.flash_kernels import LANES, backward_kernel, forward_kernel

# The largest block of queries and keys for 16-bit operands; half of each for float32. For this block the v5e compiler
# schedules 6.3e-3 cycles per score forward and 14.5e-3 backward (78 and 94 % of the matrix unit's peak at d = 256 and
# dv = 64), and together with the gradient of 4096 queries it fits the 16 MiB of VMEM of a v4.
BLOCK = (1024, 640)
# The same for the forward pass of heads of at most 128 channels: 5.1e-3 cycles per score at d = dv = 96, where `BLOCK`
# takes 5.8e-3, and no padding of the 4096 keys of a slice of 1024 px.
NARROW_BLOCK = (1024, 1024)
VMEM_BYTES = 64 << 20  # VMEM limit of a kernel
MAX_QUERY_GRADIENT = 1 << 20  # float32 numbers of the queries' gradient that `backward` holds in VMEM

BlockIndex = tuple[jax.Array, jax.Array, int]
_shape_dtype: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct  # JAX does not annotate its constructor


def fits(n: int, d: int) -> bool:
    """Return whether `backward` can hold the gradient of `n` queries of `d` channels; 1024 px is the largest size."""
    return n * pl.cdiv(d, LANES) * LANES <= MAX_QUERY_GRADIENT


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    *,
    block: tuple[int, int] | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax attention as `attention.attend` defines it.

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None if all keys are valid.
        block: largest numbers of 16-bit queries and keys per block; by default those that suit the heads.
        interpret: run in Pallas' interpreter, slowly, on any platform.

    Returns:
        The attention `[B, N, heads, dv]` in `v`'s dtype, and the logsumexp of each query's scores, float32
        `[B, heads, N]`, for `backward`.
    """
    (b, n, heads, d), m, dv = q.shape, k.shape[1], v.shape[-1]
    bq, bk = _block_sizes(n, m, block or (NARROW_BLOCK if max(d, dv) <= LANES else BLOCK), v.dtype)
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
            _shape_dtype((b * heads, rows * bq, dv), v.dtype),
            _shape_dtype((b * heads, 1, rows * bq), jnp.float32),
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
    )(_fill(valid, b, m, cols * bk), _padded_queries(scale(q), rows * bq), _flatten_heads(k), _flatten_heads(v))
    return _restore_heads(out[:, :n], heads), logsumexp[:, 0, :n].reshape(b, heads, n)


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
    """Compute the gradients of `forward` with respect to `q`, `k` and `v`.

    Args:
        q: `[B, N, heads, d]`; `fits(N, d)` must hold.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`.
        valid: bool `[B, M]`, or None.
        out: `[B, N, heads, dv]`, result of `forward`.
        logsumexp: `[B, heads, N]`, result of `forward`.
        gradient: gradient of the loss with respect to `out`, of the same shape.
        block: largest numbers of 16-bit queries and keys per block.
        interpret: run in Pallas' interpreter, slowly, on any platform.

    Returns:
        Gradients with the shapes and dtypes of `q`, `k` and `v`.
    """
    (b, n, heads, d), m, dv = q.shape, k.shape[1], v.shape[-1]
    bq, bk = _block_sizes(n, m, block, v.dtype)
    rows, cols = pl.cdiv(n, bq), pl.cdiv(m, bk)
    statistics = jnp.stack([logsumexp, weighted_means(out, gradient)], axis=2).reshape(b * heads, 2, n)
    statistics = jnp.pad(statistics, ((0, 0), (0, 0), (0, rows * bq - n)))
    per_query = d * q.dtype.itemsize + dv * v.dtype.itemsize + 8

    def by_query(g: jax.Array, j: jax.Array, i: jax.Array) -> BlockIndex:
        return g, i, 0

    def by_key(g: jax.Array, j: jax.Array, i: jax.Array) -> BlockIndex:
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
            # Complete only after the last block of keys: the index stays at block 0 until then.
            pl.BlockSpec((1, bq, d), lambda g, j, i: (g, jnp.where(j == cols - 1, i, 0), 0)),
            pl.BlockSpec((1, bk, d), by_key),
            pl.BlockSpec((1, bk, dv), by_key),
        ],
        out_shape=[
            _shape_dtype((b * heads, rows * bq, d), q.dtype),
            _shape_dtype((b * heads, m, d), k.dtype),
            _shape_dtype((b * heads, m, dv), v.dtype),
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
        _padded_queries(scale(q), rows * bq),
        _padded_queries(gradient, rows * bq),
        _flatten_heads(k),
        _flatten_heads(v),
    )
    return scale(_restore_heads(grad_q[:, :n], heads)), _restore_heads(grad_k, heads), _restore_heads(grad_v, heads)


def _fill(valid: jax.Array | None, b: int, m: int, padded: int) -> jax.Array:
    """Return `fill_of_keys` as float32 `[B, 1, padded]`; keys beyond the last one have no weight."""
    fill = jnp.ones((b, m)) if valid is None else fill_of_keys(valid)
    return jnp.pad(fill, ((0, 0), (0, padded - m)), constant_values=MASKED)[:, None]


def _block_sizes(n: int, m: int, largest: tuple[int, int], dtype: jnp.dtype) -> tuple[int, int]:
    """Return the queries and keys per block: as few blocks as `largest` allows, then the fewest lanes per block."""
    halves = dtype.itemsize // 2
    counts = (pl.cdiv(length * halves, most) for length, most in zip((n, m), largest, strict=True))
    bq, bk = (pl.cdiv(pl.cdiv(length, count), LANES) * LANES for length, count in zip((n, m), counts, strict=True))
    return bq, bk


def _padded_queries(x: jax.Array, padded: int) -> jax.Array:
    """Map `[B, N, heads, c]` to `[B x heads, padded, c]`, padded with zeros."""
    x = _flatten_heads(x)
    return jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0)))


def _flatten_heads(x: jax.Array) -> jax.Array:
    """Map `[B, N, heads, c]` to `[B x heads, N, c]`."""
    return heads_first(x).reshape(-1, x.shape[1], x.shape[3])


def _restore_heads(x: jax.Array, heads: int) -> jax.Array:
    """Map `[B x heads, N, c]` to `[B, N, heads, c]`."""
    return jnp.swapaxes(x.reshape(-1, heads, *x.shape[1:]), 1, 2)
