"""Attention for all of SAM 2: one function `attend` that never holds `[N, M]` scores of a whole large slice.

Large products are one Pallas kernel where the program is lowered for TPU (`flash_attention.py`); elsewhere they are
walked in blocks of queries, recomputed in the backward pass. `Attention` is the projected attention of the two-way
transformer and of memory attention's self-attention (`sam/transformer.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from sam2_3dmed_jax.sam2 import flash_attention
from sam2_3dmed_jax.sam2.flash_kernels import MASKED
from sam2_3dmed_jax.sam2.layers import Linear, precision_of

# Scores of one (batch, head) beyond this many are computed block by block; 2^20 float32 are 4 MiB.
MAX_SCORES = 1 << 20


def attend(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Softmax attention `softmax(q k^T / sqrt(d)) v`.

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`; `dv` may differ from `d`.
        valid: bool `[B, M]`; keys that are False get no weight.

    Returns:
        `[B, N, heads, dv]` in `v`'s dtype. Scores and softmax are float32.
    """
    if _blocks(q.shape[1], k.shape[1]) == 1:
        return _attend_block(q, k, v, valid)
    if not flash_attention.fits(q.shape[1], q.shape[3]):
        return _attend_in_blocks(q, k, v, valid)
    return _attend_by_platform(q, k, v, valid)


@jax.custom_vjp
def _attend_by_platform(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Flash attention on TPU, blocks elsewhere: decided when the program is lowered, since `plan` does so on a CPU."""
    return _forward(q, k, v, valid)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, tuple]:
    def blocks(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        b, n, heads, _ = q.shape
        return _attend_in_blocks(q, k, v, valid), jnp.zeros((b, heads, n))  # recomputes all: no logsumexp to keep

    args = (q, k, v, valid)
    out, logsumexp = lax.platform_dependent(*args, tpu=_each_device_its_rows(flash_attention.forward), default=blocks)
    return out, (*args, out, logsumexp)


def _backward(residuals: tuple, gradient: jax.Array) -> tuple:
    def blocks(q, k, v, valid, out, logsumexp, gradient):
        return jax.vjp(lambda q, k, v: _attend_in_blocks(q, k, v, valid), q, k, v)[1](gradient)

    flash = _each_device_its_rows(flash_attention.backward)
    return *lax.platform_dependent(*residuals, gradient, tpu=flash, default=blocks), None


_attend_by_platform.defvjp(_forward, _backward)


def _each_device_its_rows(kernel: Callable) -> Callable:
    """Split a kernel's batch over the mesh that its arguments lie on: the compiler cannot partition a kernel itself.

    The mesh is known from the arguments' types, so that no caller needs to hand it down. A batch that the devices do
    not divide is computed on each of them.
    """

    def apply(q: jax.Array, *rest: jax.Array | None) -> tuple[jax.Array, ...]:
        mesh = jax.typeof(q).sharding.mesh
        if not mesh.auto_axes:  # no mesh, or inside of a shard_map
            return kernel(q, *rest)
        spec = P(mesh.auto_axes) if q.shape[0] % mesh.size == 0 else P()
        return jax.shard_map(kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(q, *rest)

    return apply


def _attend_in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    n = q.shape[1]
    blocks = _blocks(n, k.shape[1])
    q_blocks = jnp.moveaxis(q.reshape(q.shape[0], blocks, n // blocks, *q.shape[2:]), 1, 0)
    block = jax.checkpoint(lambda q_block: _attend_block(q_block, k, v, valid))
    out = jnp.moveaxis(lax.map(block, q_blocks), 0, 1)
    return out.reshape(q.shape[0], n, q.shape[2], v.shape[-1])


def _blocks(n: int, m: int) -> int:
    """The fewest equal blocks of queries whose scores fit `MAX_SCORES`."""
    blocks = min(n, math.ceil(n * m / MAX_SCORES))
    while n % blocks:
        blocks += 1
    return blocks


def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    precision = precision_of(v.dtype)
    q = q * (1.0 / math.sqrt(q.shape[-1]))
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision=precision, preferred_element_type=jnp.float32)
    if valid is not None:
        scores = jnp.where(valid[:, None, None, :], scores, MASKED)
    # Normalising after the value product divides N x dv numbers and not N x M.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1)  # [B, heads, N]
    out = jnp.einsum(
        "bhnm,bmhd->bnhd", weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
    )
    return (out / jnp.swapaxes(total, 1, 2)[..., None]).astype(v.dtype)


class Attention(nnx.Module):
    """Multi-head attention whose inner width may be smaller than the embedding (`sam.transformer.Attention`)."""

    def __init__(self, embed_dim: int, num_heads: int, *, downsample: int = 1, dtype: DTypeLike):
        inner = embed_dim // downsample
        self.q_proj = Linear(embed_dim, inner, dtype=dtype)
        self.k_proj = Linear(embed_dim, inner, dtype=dtype)
        self.v_proj = Linear(embed_dim, inner, dtype=dtype)
        self.out_proj = Linear(inner, embed_dim, dtype=dtype)
        self.num_heads = num_heads

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Attend from `q [B, N, C]` to `k, v [B, M, C]`; `valid` is bool `[B, M]`. Returns `[B, N, C]`."""
        q, k, v = (self._heads(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        out = attend(q, k, v, valid)
        return self.out_proj(out.reshape(*out.shape[:2], -1))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)
