"""The Hiera trunk (`backbones/hieradet.py`; Ryali et al. 2023): windowed and global attention with query pooling.

The first block of a stage still uses the window of the previous stage, pools its queries by 2 and doubles the width.
Stochastic depth is left out, because the official configurations set it to 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import HieraConfig, Remat
from sam2_3dmed_jax.sam2.attention import attend_with_heads
from sam2_3dmed_jax.sam2.layers import (
    MLP,
    Conv,
    Linear,
    gelu,
    layer_norm,
    max_pool_2x2,
    parameter,
    project_windows,
    resize_bicubic,
    window_unpartition,
)
from sam2_3dmed_jax.sam2.remat import remat


class MultiScaleAttention(nnx.Module):
    """Self-attention within windows, with optional max pooling of the queries; window 0 is the whole slice."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, window: int, pool: bool, *, dtype: DTypeLike):
        self.qkv = Linear(dim, 3 * dim_out, dtype=dtype)
        self.proj = Linear(dim_out, dim_out, dtype=dtype)
        self.num_heads = num_heads
        self.window = window
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend within `[B, H, W, C]`; returns `[B, H', W', C']`, half the size when pooling."""
        h, w = x.shape[1:3]
        q, k, v = jnp.split(project_windows(self.qkv, x, self.window), 3, axis=-1)
        if self.pool:
            q = max_pool_2x2(q)
            h, w = h // 2, w // 2
        out = attend_with_heads(q, k, v, self.num_heads)
        if self.window:
            out = window_unpartition(out, q.shape[1], h, w)
        return self.proj(out)


class MultiScaleBlock(nnx.Module):
    """One transformer block; `window` 0 attends over the whole slice."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, window: int, pool: bool, *, dtype: DTypeLike):
        self.norm1 = layer_norm(dim, eps=1e-6, dtype=dtype)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, window, pool, dtype=dtype)
        self.norm2 = layer_norm(dim_out, eps=1e-6, dtype=dtype)
        self.mlp = MLP((dim_out, 4 * dim_out, dim_out), activation=gelu, dtype=dtype)
        self.proj = Linear(dim, dim_out, dtype=dtype) if dim != dim_out else None
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, dim]` to `[B, H', W', dim_out]`."""
        shortcut = x
        x = self.norm1(x)
        if self.proj is not None:
            shortcut = self.proj(x)
            shortcut = max_pool_2x2(shortcut) if self.pool else shortcut
        x = shortcut + self.attn(x)
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
        self.dtype = dtype

    def __call__(self, images: jax.Array, remat_policy: Remat = "none") -> list[jax.Array]:
        """Encode `images [B, S, S, 3]`; returns `[B, S/4, S/4, C1]` to `[B, S/32, S/32, C4]`.

        `remat_policy` applies to each block.
        """
        x = self.patch_embed["proj"](images)
        x = x + self.position_embedding(*x.shape[1:3]).astype(self.dtype)[None]
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
