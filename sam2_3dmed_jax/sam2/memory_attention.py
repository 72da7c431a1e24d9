"""Memory attention (`memory_attention.py`): slice features attend to themselves, then to memories and pointers.

Memories have 64 channels before projection, so values are reassociated exactly: `softmax(QK^T)(M W + b) =
(softmax(QK^T) M) W + b`. One head, RoPE on features and spatial memories, none on pointer tokens. Dropout is 0.
Before the first memory all objects of a slice are alike: the first self-attention is of slices, not of objects.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.attention import attend
from sam2_3dmed_jax.sam2.layers import Linear, layer_norm
from sam2_3dmed_jax.sam2.position_encoding import apply_rope, halves, rope_tables, sine_position


class MemoryTokens(NamedTuple):
    """What a slice may attend to. Spatial memories come first, each with N tokens, then pointer tokens."""

    tokens: jax.Array  # [K, M, mem_dim]
    position: jax.Array  # [K, M, mem_dim], added to the keys only
    valid: jax.Array  # bool [K, M]
    pointers: int  # how many of the M tokens are pointer tokens


class RoPEAttention(nnx.Module):
    """Single-head attention with rotary positions; keys and values may have fewer channels (`kv_dim`)."""

    def __init__(self, embed_dim: int, kv_dim: int, *, dtype: DTypeLike):
        self.q_proj = Linear(embed_dim, embed_dim, dtype=dtype)
        self.k_proj = Linear(kv_dim, embed_dim, dtype=dtype)
        self.v_proj = Linear(kv_dim, embed_dim, dtype=dtype)
        self.out_proj = Linear(embed_dim, embed_dim, dtype=dtype)
        self.reassociate = kv_dim < embed_dim
        self.dtype = dtype

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, side: int, pointers: int = 0, valid: jax.Array | None = None
    ) -> jax.Array:
        """Attend from `q [B, N, C]` to `k, v [B, M, kv_dim]`, N = side^2; the last `pointers` keys take no RoPE."""
        # Scores do not depend on the order of channels: queries' and keys' are what RoPE takes.
        q, k = self.q_proj(q, halves), self.k_proj(k, halves)
        cos, sin = rope_tables(side, side, q.shape[-1])
        q = apply_rope(q, cos, sin)
        spatial = k.shape[1] - pointers
        maps = k[:, :spatial].reshape(k.shape[0], -1, side * side, k.shape[-1])
        maps = apply_rope(maps, cos, sin).reshape(k.shape[0], spatial, -1)
        k = jnp.concatenate([maps, k[:, spatial:]], axis=1) if pointers else maps
        v = v.astype(self.dtype) if self.reassociate else self.v_proj(v)
        out = attend(q[:, :, None], k[:, :, None], v[:, :, None], valid)[:, :, 0]
        return self.out_proj(self.v_proj(out) if self.reassociate else out)


class MemoryAttentionLayer(nnx.Module):
    """Self-attention, cross-attention to the memory, feed-forward; pre-norm."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        c = config.d_model
        self.self_attn = RoPEAttention(c, c, dtype=dtype)
        self.cross_attn_image = RoPEAttention(c, config.mem_dim, dtype=dtype)
        self.linear1 = Linear(c, config.memory_attention_ff, dtype=dtype)
        self.linear2 = Linear(config.memory_attention_ff, c, dtype=dtype)
        self.norm1 = layer_norm(c, eps=1e-5, dtype=dtype)
        self.norm2 = layer_norm(c, eps=1e-5, dtype=dtype)
        self.norm3 = layer_norm(c, eps=1e-5, dtype=dtype)

    def __call__(self, x: jax.Array, memory: MemoryTokens, side: int) -> jax.Array:
        """Map `x [B, N, C]` to `[K, N, C]`; each of B rows is that of K / B neighbouring rows of the memory."""
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y, side)
        x = jnp.repeat(x, memory.tokens.shape[0] // x.shape[0], axis=0)
        keys = memory.tokens + memory.position
        x = x + self.cross_attn_image(self.norm2(x), keys, memory.tokens, side, memory.pointers, memory.valid)
        return x + self.linear2(jax.nn.relu(self.linear1(self.norm3(x))))


class MemoryAttention(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        self.layers = nnx.List(
            [MemoryAttentionLayer(config, dtype=dtype) for _ in range(config.memory_attention_layers)]
        )
        self.norm = layer_norm(config.d_model, eps=1e-5, dtype=dtype)
        self.dtype = dtype

    def __call__(self, embedding: jax.Array, memory: MemoryTokens) -> jax.Array:
        """Condition `embedding [B, h, w, C]` (h = w) on the memory of K rows, K / B neighbours each: `[K, h, w, C]`."""
        b, h, w, c = embedding.shape
        x = (embedding + 0.1 * sine_position(h, w, c)).astype(self.dtype).reshape(b, h * w, c)
        for layer in self.layers:
            x = layer(x, memory, h)
        return self.norm(x).reshape(-1, h, w, c)
