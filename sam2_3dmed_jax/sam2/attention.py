"""Attention for all of SAM 2: one function `attend` that never holds `[N, M]` scores of a whole large slice.

Large products are one Pallas kernel where the program is lowered for TPU (`flash_attention.py`), and are walked in
blocks elsewhere (`blocked_attention.py`); both compute the scores again in the backward pass. `Attention` is the
projected attention of the two-way transformer (`sam/transformer.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from sam2_3dmed_jax.sam2 import blocked_attention, flash_attention
from sam2_3dmed_jax.sam2.blocked_attention import add_keys, with_ones
from sam2_3dmed_jax.sam2.layers import Linear

# Scores of all rows and heads that are held at once; 2^20 float32 are 4 MiB. Those of windows, a quarter or less a
# row, always are.
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
    (b, n, heads, _), m = q.shape, k.shape[1]
    if n * m <= MAX_SCORES // 4 or b * heads * n * m <= MAX_SCORES:
        return _attend_at_once(q, k, v, valid)
    return _attend_in_blocks(q, k, v, valid)


@jax.custom_vjp
def _attend_in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Flash attention on TPU, blocks of XLA's elsewhere: decided when the program is lowered, as `plan` does on CPU."""
    return _forward(q, k, v, valid)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, tuple]:
    args = (q, k, v, valid)
    out, logsumexp = _by_platform(q, flash_attention.forward, blocked_attention.forward)(*args)
    return out, (*args, out, logsumexp)


def _backward(residuals: tuple, gradient: jax.Array) -> tuple:
    backward = _by_platform(residuals[0], flash_attention.backward, blocked_attention.backward)
    return *backward(*residuals, gradient), None


_attend_in_blocks.defvjp(_forward, _backward)


def _by_platform(q: jax.Array, flash: Callable, blocked: Callable) -> Callable:
    """The function of a platform; the kernel where it can hold the queries `q` at all."""
    kinds = {"cpu": blocked_attention.one_by_one(blocked), "default": blocked}
    if flash_attention.fits(q.shape[1], q.shape[3]):
        kinds["tpu"] = _each_device_its_rows(flash)
    return functools.partial(lax.platform_dependent, **kinds)


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


def _attend_at_once(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    q, k, values = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [B, heads, tokens, channels]
    sums = add_keys(None, q * (1.0 / math.sqrt(q.shape[-1])), k, with_ones(values), valid).sums
    # Normalising after the value product divides N x dv numbers and not N x M.
    return jnp.swapaxes(sums[..., :-1] / sums[..., -1:], 1, 2).astype(v.dtype)


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
