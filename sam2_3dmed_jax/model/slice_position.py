"""Slice relative position prediction (SRPP): slice embeddings, their context over the clip, and pairwise positions.

Paper: one embedding a slice, a small Transformer encoder over the slices of the clip, an MLP on each ordered pair.
Ours: the Transformer's output is shared with the mask path through a zero-initialised projection, since a frozen
encoder gives a training-only head nothing to teach (`SrppConfig.to_mask` false leaves the projection out: the paper's).
No slice index or position encoding enters, as order must be read from anatomy, unless `SrppConfig.told_order` asks for
the alternative: a learned embedding of each slice's place, with which SRPP's task is trivial (its loss then weighs 0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import SrppConfig
from sam2_3dmed_jax.sam2.attention import Attention
from sam2_3dmed_jax.sam2.layers import MLP, Linear, gelu, layer_norm


class ContextLayer(nnx.Module):
    """One pre-norm Transformer encoder layer over the slices of a clip."""

    def __init__(self, config: SrppConfig, *, dtype: DTypeLike):
        self.norm1 = layer_norm(config.dim, eps=1e-5, dtype=dtype)
        self.attention = Attention(config.dim, config.heads, dtype=dtype)
        self.norm2 = layer_norm(config.dim, eps=1e-5, dtype=dtype)
        self.mlp = MLP((config.dim, 2 * config.dim, config.dim), activation=gelu, dtype=dtype)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Map `x [B, D, dim]` to `[B, D, dim]`; slices where `valid [B, D]` is False are not attended to."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, valid)
        return x + self.mlp(self.norm2(x))


class SlicePosition(nnx.Module):
    """Slice embeddings, slice context and the SRPP head."""

    def __init__(self, config: SrppConfig, channels: int, *, dtype: DTypeLike):
        dim = config.dim
        self.cell = Linear(channels, dim, dtype=dtype)
        self.pool = Linear(2 * dim, dim, dtype=dtype)
        self.pos_embed = nnx.Param(jnp.zeros((config.window, dim))) if config.told_order else None
        self.layers = nnx.List([ContextLayer(config, dtype=dtype) for _ in range(config.layers)])
        self.norm = layer_norm(dim, eps=1e-5, dtype=dtype)
        self.pair = MLP((2 * dim, dim, 1), activation=gelu, dtype=jnp.float32)
        self.to_features = Linear(dim, channels, dtype=dtype) if config.to_mask else None
        self.config = config

    def embed(self, embedding: jax.Array) -> jax.Array:
        """One embedding a slice, by mean and max over its cells: `[..., h, w, C]` to `[..., dim]`."""
        cells = gelu(self.cell(embedding))
        return self.pool(jnp.concatenate([cells.mean((-3, -2)), cells.max((-3, -2))], axis=-1))

    def context(self, slices: jax.Array, valid: jax.Array, index: jax.Array) -> jax.Array:
        """`s'_i` of clips: `slices [B, D, dim]`, `valid` bool `[B, D]`, their `index [B, D]` in the volume.

        The index is looked at only with `told_order`, and then only to count the clip's slices from inferior to
        superior: the stride is not told, nor the direction of the walk.

        Returns:
            `[B, D, dim]`.
        """
        if self.pos_embed is not None:
            place = ((index[:, None, :] < index[:, :, None]) & valid[:, None, :]).sum(-1)
            slices = slices + self.pos_embed[...][place].astype(slices.dtype)
        for layer in self.layers:
            slices = layer(slices, valid)
        return self.norm(slices)

    def positions(self, context: jax.Array) -> jax.Array:
        """`P_pos[i, j]` of each ordered pair, in `unit * scale`: `[B, D, dim]` to float32 `[B, D, D]`."""
        b, d, dim = context.shape
        first = jnp.broadcast_to(context[:, :, None], (b, d, d, dim))
        second = jnp.broadcast_to(context[:, None], (b, d, d, dim))
        return self.pair(jnp.concatenate([first, second], axis=-1))[..., 0]

    def to_mask(self, context: jax.Array) -> jax.Array | None:
        """What is added to the features that segment, `[..., dim]` to `[..., C]`; None without a path to the mask."""
        return None if self.to_features is None else self.to_features(context)

    def volume_context(self, slices: jax.Array, depth: jax.Array) -> jax.Array:
        """`s'_i` over a volume of any depth, by windows of the trained D.

        A slice takes the mean over the windows in which it is most central; at even D two tie, and taking one would
        break the symmetry under a flip. A volume shallower than D is one masked window.

        Args:
            slices: `[n, dim]` slice embeddings, padded at the end.
            depth: int32, how many of them are real.

        Returns:
            `[n, dim]`.
        """
        n, window = slices.shape[0], self.config.window
        last_start = jnp.maximum(depth - window, 0)
        offsets = jnp.arange(window)
        index = jnp.minimum(jnp.arange(n)[:, None], last_start) + offsets  # [n, window]: window i starts at slice i
        windows = self.context(slices[jnp.minimum(index, n - 1)], index < depth, index)
        positions = jnp.arange(n)
        low = jnp.clip(positions - window // 2, 0, last_start)  # for odd D both are the same window
        high = jnp.clip(positions - (window - 1) // 2, 0, last_start)
        inside = window - 1
        pick = [windows[start, jnp.clip(positions - start, 0, inside)] for start in (low, high)]
        return (pick[0] + pick[1]) / 2
