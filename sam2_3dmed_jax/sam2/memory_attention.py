"""Memory attention (`memory_attention.py`): slice features attend to themselves, then to memories and pointers.

One head, with RoPE on features and spatial memories and none on pointer tokens. Dropout is 0. Objects of a slice differ
only after the first attention to their memories, so the self-attention of the first layer runs once per slice.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.attention import RoPEAttention
from sam2_3dmed_jax.sam2.layers import Linear, layer_norm, repeat_per_object, with_leading_axes
from sam2_3dmed_jax.sam2.position_encoding import sine_position


class MemoryTokens(NamedTuple):
    """The tokens that K objects attend to: spatial memories first, with N tokens each, then pointer tokens."""

    tokens: jax.Array  # [K, M, mem_dim]
    position: jax.Array  # [K, M, mem_dim], added to the keys only
    valid: jax.Array  # bool [K, M]
    pointers: int  # number of pointer tokens among the M tokens


class MemoryAttentionLayer(nnx.Module):
    """Pre-norm self-attention, cross-attention to the memory, and feed-forward."""

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
        """Map `x [B, N, C]` to `[K, N, C]`; each row of `x` belongs to K / B consecutive rows of the memory."""
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y, side)
        x = repeat_per_object(x, len(memory.tokens))
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
        """Condition `embedding [B, h, w, C]` (h = w) on the memories of K objects; returns `[K, h, w, C]`.

        The K / B objects of one slice are consecutive rows of the memory.
        """
        b, h, w, c = embedding.shape
        position = with_leading_axes(0.1 * sine_position(h, w, c), embedding.ndim)
        x = (embedding + position).astype(self.dtype).reshape(b, h * w, c)
        for layer in self.layers:
            x = layer(x, memory, h)
        conditioned: jax.Array = self.norm(x)
        return conditioned.reshape(-1, h, w, c)
