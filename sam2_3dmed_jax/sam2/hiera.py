"""The Hiera trunk (`backbones/hieradet.py`; Ryali et al. 2023): windowed and global attention with query pooling.

The first block of a stage still uses the window of the previous stage, pools its queries by 2 and doubles the width.
Stochastic depth is left out, because the official configurations set it to 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import HieraConfig, Remat
from sam2_3dmed_jax.sam2.attention import attend_in_windows
from sam2_3dmed_jax.sam2.layers import (
    MLP,
    Conv,
    Linear,
    add_broadcast,
    gelu,
    in_order,
    layer_norm,
    max_pool_2x2,
    parameter,
    resize_bicubic,
    window_partition,
    window_unpartition,
)
from sam2_3dmed_jax.sam2.remat import remat


class MultiScaleAttention(nnx.Module):
    """Self-attention within each window, with optional max pooling of the queries."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, pool: bool, *, dtype: DTypeLike):
        self.qkv = Linear(dim, 3 * dim_out, dtype=dtype)
        self.proj = Linear(dim_out, dim_out, dtype=dtype)
        self.num_heads = num_heads
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend within each window of `[n, H, W, C]`; returns `[n, H', W', C']`, half the size when pooling."""
        return self.proj(self.attend(*self.qkv.parts(x, 3)))

    def in_windows(self, x: jax.Array, side: int) -> jax.Array:
        """Attend within windows of `[B, H, W, C]`, which may reach beyond the slice; returns `[B, H', W', C']`."""
        shrink = 2 if self.pool else 1
        out = self.attend(*self.qkv.parts(x, 3, side))
        return self.proj(window_unpartition(out, side // shrink, *(length // shrink for length in x.shape[1:3])))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attend from `q [n, H, W, C']`, pooled here, to `k, v [n, H, W, C']`."""
        return attend_in_windows(max_pool_2x2(q) if self.pool else q, k, v, self.num_heads)


class MultiScaleBlock(nnx.Module):
    """One transformer block; `window` 0 attends over the whole slice."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, window: int, pool: bool, *, dtype: DTypeLike):
        self.norm1 = layer_norm(dim, eps=1e-6, dtype=dtype)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, pool, dtype=dtype)
        self.norm2 = layer_norm(dim_out, eps=1e-6, dtype=dtype)
        self.mlp = MLP((dim_out, 4 * dim_out, dim_out), activation=gelu, dtype=dtype)
        self.proj = Linear(dim, dim_out, dtype=dtype) if dim != dim_out else None
        self.window = window
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, dim]` to `[B, H', W', dim_out]`.

        In 16 bits, tokens stay in their windows for the whole block, unless windows reach beyond the slice. In float32,
        a CPU is faster if they are there for the attention only.
        """
        (h, w), side = x.shape[1:3], self.window
        if not side:
            return self.transform(x, self.attn)
        if x.dtype == jnp.float32 or h % side or w % side:
            return self.transform(x, lambda tokens: self.attn.in_windows(tokens, side))
        windows = self.transform(in_order(window_partition(x, side)), self.attn)
        shrink = 2 if self.pool else 1
        return window_unpartition(windows, side // shrink, h // shrink, w // shrink)

    def transform(self, x: jax.Array, attention: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Apply the block to windows or slices `[n, H, W, dim]`, with its attention in this form."""
        shortcut = x
        x = self.norm1(x)
        if self.proj is not None:
            shortcut = self.proj(x)
            shortcut = max_pool_2x2(shortcut) if self.pool else shortcut
        x = shortcut + attention(x)
        return x + self.mlp(self.norm2(x))


class Hiera(nnx.Module):
    """The trunk: one feature map per stage, at strides 4, 8, 16 and 32."""

    def __init__(self, config: HieraConfig, *, dtype: DTypeLike):
        dim, heads = config.embed_dim, config.num_heads
        self.patch_embed = nnx.Dict(proj=Conv(3, dim, kernel=7, stride=4, padding=3, dtype=dtype))
        self.pos_embed = parameter(*config.pos_embed_size, dim)
        self.pos_embed_window = parameter(config.window_spec[0], config.window_spec[0], dim)
        blocks: list[MultiScaleBlock] = []
        for stage, count in enumerate(config.stages):
            for i in range(count):
                first = i == 0 and stage > 0
                dim_out = dim * 2 if first else dim
                heads = heads * 2 if first else heads
                window = config.window_spec[stage - 1 if first else stage]
                window = 0 if len(blocks) in config.global_att_blocks else window
                blocks.append(MultiScaleBlock(dim, dim_out, heads, window, pool=first, dtype=dtype))
                dim = dim_out
        self.blocks = nnx.List(blocks)
        self.stage_ends = tuple(sum(config.stages[: i + 1]) - 1 for i in range(len(config.stages)))

    def __call__(self, images: jax.Array, remat_policy: Remat = "none") -> list[jax.Array]:
        """Encode `images [B, S, S, 3]`; returns `[B, S/4, S/4, C1]` to `[B, S/32, S/32, C4]`.

        `remat_policy` applies to each block.
        """
        x = self.patch_embed["proj"](images)
        x = add_broadcast(x, self.position_embedding(*x.shape[1:3])[None])
        features = []
        for i, block in enumerate(self.blocks):
            x = remat(block, remat_policy)(x)
            if i in self.stage_ends:
                features.append(x)
        return features

    def position_embedding(self, h: int, w: int) -> jax.Array:
        """Return the resized background embedding plus the tiled window embedding, `[h, w, C]`."""
        window = self.pos_embed_window[...]
        rows, cols = -(-h // window.shape[0]), -(-w // window.shape[1])
        return resize_bicubic(self.pos_embed[...], h, w) + jnp.tile(window, (rows, cols, 1))[:h, :w]
