"""Slice relative position prediction (SRPP): slice embeddings, their context over the clip, and pairwise positions.

Paper: one embedding per slice, a small Transformer encoder over the slices of the clip, and an MLP on each ordered
pair. Ours: a zero-initialised projection adds the Transformer's output to the mask features, because a head used only
in training teaches nothing to a frozen encoder (`SrppConfig.to_mask` False leaves the projection out, as in the paper).
The modules get no slice index, because order must be read from anatomy, unless `SrppConfig.order_embedding` adds a
learned embedding of each slice's place; SRPP's task is then trivial and its loss weighs 0. See
docs/explanation/method.md.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import SrppConfig
from sam2_3dmed_jax.sam2.attention import Attention
from sam2_3dmed_jax.sam2.layers import MLP, Linear, add_broadcast, gelu, layer_norm


def add_context(embedding: jax.Array, context: jax.Array) -> jax.Array:
    """Add the slice context `[B, C]` to all feature cells of `[B, h, w, C]`."""
    return add_broadcast(embedding, context[:, None, None])


class ContextLayer(nnx.Module):
    """One pre-norm Transformer encoder layer over the slices of a clip."""

    def __init__(self, config: SrppConfig, *, dtype: DTypeLike):
        self.norm1 = layer_norm(config.dim, eps=1e-5, dtype=dtype)
        self.attention = Attention(config.dim, config.heads, dtype=dtype)
        self.norm2 = layer_norm(config.dim, eps=1e-5, dtype=dtype)
        self.mlp = MLP((config.dim, 2 * config.dim, config.dim), activation=gelu, dtype=dtype)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Map `x [B, D, dim]` to `[B, D, dim]`; slices with `valid [B, D]` False are not attended to."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, valid)
        return x + self.mlp(self.norm2(x))


class SlicePosition(nnx.Module):
    """The slice embedding, the slice context and the SRPP head."""

    def __init__(self, config: SrppConfig, channels: int, *, dtype: DTypeLike):
        dim = config.dim
        self.cell = Linear(channels, dim, dtype=dtype)
        self.pool = Linear(2 * dim, dim, dtype=dtype)
        self.pos_embed = nnx.Param(jnp.zeros((config.context_slices, dim))) if config.order_embedding else None
        self.layers = nnx.List([ContextLayer(config, dtype=dtype) for _ in range(config.layers)])
        self.norm = layer_norm(dim, eps=1e-5, dtype=dtype)
        self.pair = MLP((2 * dim, dim, 1), activation=gelu, dtype=jnp.float32)
        self.to_features = Linear(dim, channels, dtype=dtype) if config.to_mask else None
        self.config = config

    def embed(self, embedding: jax.Array) -> jax.Array:
        """Return one embedding per slice, from mean and maximum over its cells: `[..., h, w, C]` to `[..., dim]`."""
        cells = gelu(self.cell(embedding)).astype(jnp.float32)
        return self.pool(jnp.concatenate([cells.mean((-3, -2)), cells.max((-3, -2))], axis=-1))

    def context(self, slices: jax.Array, valid: jax.Array, index: jax.Array) -> jax.Array:
        """Return the slice contexts `s'_i` of clips.

        Args:
            slices: slice embeddings `[B, D, dim]`.
            valid: bool `[B, D]`; False for padding.
            index: slice indices in the volume, `[B, D]`. They are used only with `order_embedding`, and only to rank
                the slices of a clip from inferior to superior, so neither the stride nor the direction of propagation
                is known.

        Returns:
            `[B, D, dim]`.
        """
        if self.pos_embed is not None:
            rank = ((index[:, None, :] < index[:, :, None]) & valid[:, None, :]).sum(-1)
            slices = slices + self.pos_embed[...][rank].astype(slices.dtype)
        for layer in self.layers:
            slices = layer(slices, valid)
        context: jax.Array = self.norm(slices)
        return context

    def positions(self, context: jax.Array) -> jax.Array:
        """Return `P_pos[i, j]` of each ordered pair, in `unit * scale`: `[B, D, dim]` to float32 `[B, D, D]`."""
        b, d, dim = context.shape
        first = jnp.broadcast_to(context[:, :, None], (b, d, d, dim))
        second = jnp.broadcast_to(context[:, None], (b, d, d, dim))
        return self.pair(jnp.concatenate([first, second], axis=-1))[..., 0]

    def to_mask(self, context: jax.Array) -> jax.Array | None:
        """Project `[..., dim]` to the term `[..., C]` that is added to the mask features; None without `to_mask`."""
        return None if self.to_features is None else self.to_features(context)

    def volume_context(self, slices: jax.Array, depth: jax.Array) -> jax.Array:
        """Return the slice contexts `s'_i` of a volume of any depth, from windows of the trained D slices.

        A slice takes its context from the window in which it is most central. For even D there are two such windows,
        whose mean is taken, because choosing one of them would break the symmetry under a flip. A volume with fewer
        than D slices is one masked window.

        Args:
            slices: `[n, dim]` slice embeddings, padded at the end.
            depth: int32, number of slices without padding.

        Returns:
            `[n, dim]`.
        """
        n, window = slices.shape[0], self.config.context_slices
        last_start = jnp.maximum(depth - window, 0)
        offsets = jnp.arange(window)
        # [n, window]: window i starts at slice i
        index = jnp.minimum(jnp.arange(n)[:, None], last_start) + offsets[None, :]
        windows = self.context(slices[jnp.minimum(index, n - 1)], index < depth, index)
        positions = jnp.arange(n)
        low = jnp.clip(positions - window // 2, 0, last_start)  # for odd D, `low` and `high` are the same window
        high = jnp.clip(positions - (window - 1) // 2, 0, last_start)
        contexts = [windows[start, jnp.clip(positions - start, 0, window - 1)] for start in (low, high)]
        return (contexts[0] + contexts[1]) / 2
