"""Softmax attention for all of SAM 2: `attend`, and the projected attentions of its transformers.

Attention with many scores has one implementation per platform, selected when the program is lowered: a Pallas kernel
on TPU (`flash_attention.py`), blocks that fit the cache on CPU (`blocked_attention.py`), and on GPU a kernel
(`triton_attention.py`) or plain XLA (`wide_attention.py`), as `attention_choice.py` decides. All compute the scores
again in the backward pass. `Attention` and `RoPEAttention` follow upstream's `sam/transformer.py`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from sam2_3dmed_jax.sam2 import blocked_attention, flash_attention, wide_attention
from sam2_3dmed_jax.sam2.attention_choice import LEAST_CAPABILITY, Choice, chosen_attention
from sam2_3dmed_jax.sam2.attention_steps import AttentionFunction, heads_first, product, scale, tokens_first
from sam2_3dmed_jax.sam2.blocked_attention import accumulate_keys, append_ones
from sam2_3dmed_jax.sam2.layers import Linear
from sam2_3dmed_jax.sam2.local_rows import on_local_rows
from sam2_3dmed_jax.sam2.position_encoding import apply_rope, half_split_order, rope_tables

# The number of scores of all rows and heads that may be held at once; 2^20 float32 are 4 MiB. Attention with at most a
# quarter of that per row, such as in windows, is always computed at once, except by the GPU's kernel: it takes one
# launch instead of 8 forward, 3 instead of 14 backward, and moves an eighth of the bytes (`architecture.md`).
MAX_SCORES = 1 << 20

_at_once = ContextVar("_at_once", default=False)

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Return softmax attention `softmax(q k^T / sqrt(d)) v`.

    Args:
        q: `[B, N, heads, d]`.
        k: `[B, M, heads, d]`.
        v: `[B, M, heads, dv]`; `dv` may differ from `d`.
        valid: bool `[B, M]`; keys that are False get no weight.

    Returns:
        `[B, N, heads, dv]` in `v`'s dtype. Scores and softmax are float32.
    """
    (b, n, heads, d), m = q.shape, k.shape[1]
    if _at_once.get():
        return _attend_at_once(q, k, v, valid)
    gpu = chosen_attention(jnp.result_type(q, k, v), max(d, v.shape[-1]))
    few_scores = n * m <= MAX_SCORES // 4 or b * heads * n * m <= MAX_SCORES
    if few_scores and gpu.path != "triton":
        return _attend_at_once(q, k, v, valid)
    return _attend_by_platform(gpu, q, k, v, valid)


@contextlib.contextmanager
def all_scores_at_once() -> Iterator[None]:
    """Hold all scores of each attention that the block traces, for formats without loops and kernels, such as ONNX."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


def attend_with_heads(
    q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, valid: jax.Array | None = None
) -> jax.Array:
    """Attend from `q [B, ..., C]` to `k, v [B, ..., C]` with channels split into heads; returns `q`'s shape."""
    q_heads, k_heads, v_heads = (x.reshape(x.shape[0], -1, num_heads, x.shape[-1] // num_heads) for x in (q, k, v))
    return attend(q_heads, k_heads, v_heads, valid).reshape(*q.shape[:-1], -1)


def attend_in_windows(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int) -> jax.Array:
    """Attend as `attend_with_heads` within each window: from `q [n, h, w, C]` to `k, v [n, H, W, C]`."""
    few_scores = math.prod(q.shape[1:3]) * math.prod(k.shape[1:3]) <= MAX_SCORES // 4
    if not few_scores or q.dtype == jnp.float32:
        return attend_with_heads(q, k, v, num_heads)
    out: jax.Array = lax.platform_dependent(
        *(q, k, v),
        tpu=functools.partial(_attend_head_by_head, num_heads=num_heads),
        default=functools.partial(attend_with_heads, num_heads=num_heads),
    )
    return out


def _attend_head_by_head(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int) -> jax.Array:
    """Attend with one product per head: a TPU would pad an axis of few heads to 8, and copy the map to make one."""
    heads = zip(*(jnp.split(x.reshape(len(x), -1, x.shape[-1]), num_heads, axis=-1) for x in (q, k, v)), strict=True)
    return jnp.concatenate([_attend_one_head(*head) for head in heads], axis=-1).reshape(q.shape)


def _attend_one_head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = product("bnd,bmd->bnm", scale(q), k)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    sums = product("bnm,bmd->bnd", weights.astype(v.dtype), v)
    return (sums / weights.sum(-1, keepdims=True)).astype(v.dtype)


class Implementation(NamedTuple):
    """One way to compute attention."""

    forward: AttentionFunction
    backward: AttentionFunction


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_by_platform(gpu: Choice, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Attend by the implementation of the platform, which is known only when the program is lowered.

    `plan` lowers for TPUs and GPUs on a CPU.
    """
    return _forward(gpu, q, k, v, valid)[0]


def _forward(
    gpu: Choice, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, Residuals]:
    by_platform = {platform: found.forward for platform, found in _implementations(gpu, q).items()}
    out, logsumexp = lax.platform_dependent(q, k, v, valid, **by_platform)
    return out, (q, k, v, valid, out, logsumexp)


def _backward(gpu: Choice, residuals: Residuals, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    by_platform = {platform: found.backward for platform, found in _implementations(gpu, residuals[0]).items()}
    return *lax.platform_dependent(*residuals, gradient, **by_platform), None


_attend_by_platform.defvjp(_forward, _backward)


def _implementations(gpu: Choice, q: jax.Array) -> dict[str, Implementation]:
    """Return the implementation of attention from queries `q` by platform."""
    blocked = Implementation(blocked_attention.forward, blocked_attention.backward)
    wide = Implementation(wide_attention.forward, wide_attention.backward)
    on_gpu = {"blocked": blocked, "wide": wide}.get(gpu.path) or _triton_attention(gpu)
    if gpu.forced:
        return {"default": on_gpu}
    # A TPU's kernel holds the gradient of all queries.
    flash = Implementation(on_local_rows(flash_attention.forward), on_local_rows(flash_attention.backward))
    return {
        "cpu": Implementation(*map(blocked_attention.per_row_and_head, blocked)),
        "tpu": flash if flash_attention.fits(q.shape[1], q.shape[3]) else blocked,
        "default": on_gpu,
    }


def _triton_attention(gpu: Choice) -> Implementation:
    """Return the GPU's kernels; imported here, because JAX deprecates Pallas-Triton."""
    from sam2_3dmed_jax.sam2 import triton_attention

    settings: dict[str, Any] = {
        "capability": gpu.capability or LEAST_CAPABILITY,
        "interpret": gpu.capability is None,
    }
    kernels: tuple[AttentionFunction, ...] = (triton_attention.forward, triton_attention.backward)
    return Implementation(*(on_local_rows(functools.partial(kernel, **settings)) for kernel in kernels))


def _attend_at_once(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    q, k, values = map(heads_first, (q, k, v))
    sums = accumulate_keys(None, scale(q), k, append_ones(values), valid).sums
    # Normalising after the value product divides N x dv numbers instead of N x M.
    return tokens_first(sums[..., :-1] / sums[..., -1:]).astype(v.dtype)


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
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        return self.out_proj(attend_with_heads(q, k, v, self.num_heads, valid))


class RoPEAttention(nnx.Module):
    """Single-head attention with rotary positions (`sam.transformer.RoPEAttention`).

    Keys and values may have fewer channels than queries (`kv_dim`). The value product is then reassociated,
    `softmax(QK^T)(V W + b) = (softmax(QK^T) V) W + b`, which is exact and multiplies the weights with `kv_dim` channels
    instead of `embed_dim`.
    """

    def __init__(self, embed_dim: int, kv_dim: int, *, dtype: DTypeLike):
        self.q_proj = Linear(embed_dim, embed_dim, dtype=dtype)
        self.k_proj = Linear(kv_dim, embed_dim, dtype=dtype)
        self.v_proj = Linear(kv_dim, embed_dim, dtype=dtype)
        self.out_proj = Linear(embed_dim, embed_dim, dtype=dtype)
        self.reassociate_values = kv_dim < embed_dim
        self.dtype = dtype

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, side: int, pointers: int = 0, valid: jax.Array | None = None
    ) -> jax.Array:
        """Attend from `q [B, N, C]` to `k, v [B, M, kv_dim]`, N = side^2; the last `pointers` keys take no RoPE."""
        # Scores do not depend on the order of channels, so queries and keys are projected into the order of RoPE.
        q = self.q_proj.with_channel_order(q, half_split_order)
        k = self.k_proj.with_channel_order(k, half_split_order)
        cos, sin = rope_tables(side, side, q.shape[-1])
        q = apply_rope(q, cos, sin)
        spatial = k.shape[1] - pointers
        maps = k[:, :spatial].reshape(k.shape[0], -1, side * side, k.shape[-1])
        maps = apply_rope(maps, cos, sin).reshape(k.shape[0], spatial, -1)
        k = jnp.concatenate([maps, k[:, spatial:]], axis=1) if pointers else maps
        v = v.astype(self.dtype) if self.reassociate_values else self.v_proj(v)
        out = attend(q[:, :, None], k[:, :, None], v[:, :, None], valid)[:, :, 0]
        return self.out_proj(self.v_proj(out) if self.reassociate_values else out)
