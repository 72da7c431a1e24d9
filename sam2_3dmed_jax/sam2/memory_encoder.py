"""Memory encoder (`memory_encoder.py`): encodes a slice's features and its mask as a memory of `mem_dim` channels."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.layers import (
    Conv,
    DepthwiseConv7x7,
    Linear,
    add_scaled,
    gelu,
    layer_norm,
    parameter,
    repeat_per_object,
)


class MaskDownSampler(nnx.Module):
    """Four strided 3x3 convolutions with norm and GELU, each with four times the channels, then a 1x1 convolution."""

    def __init__(self, embed_dim: int, *, dtype: DTypeLike):
        channels = (1, 4, 16, 64, 256)
        layers: list[Any] = []
        for i in range(4):
            layers += [
                Conv(channels[i], channels[i + 1], kernel=3, stride=2, padding=1, dtype=dtype),
                layer_norm(channels[i + 1], eps=1e-6, dtype=dtype),
                gelu,
            ]
        self.encoder: nnx.List[Any] = nnx.List([*layers, Linear(channels[-1], embed_dim, dtype=dtype)])

    def __call__(self, masks: jax.Array) -> jax.Array:
        """Map `masks [K, S, S, 1]` to `[K, S/16, S/16, C]`."""
        x = masks
        for layer in self.encoder:
            x = layer(x)
        return x


class CXBlock(nnx.Module):
    """A ConvNeXt block with layer scale."""

    def __init__(self, dim: int, *, dtype: DTypeLike):
        self.dwconv = DepthwiseConv7x7(dim, dtype=dtype)
        self.norm = layer_norm(dim, eps=1e-6, dtype=dtype)
        self.pwconv1 = Linear(dim, 4 * dim, dtype=dtype)
        self.pwconv2 = Linear(4 * dim, dim, dtype=dtype)
        self.gamma = parameter(dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[K, h, w, C]` to `[K, h, w, C]`."""
        y = self.pwconv2(gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return add_scaled(x, y, self.gamma[...])


class MemoryEncoder(nnx.Module):
    """The sum of projected features and downsampled mask, two ConvNeXt blocks, and a projection to `mem_dim`."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        c = config.d_model
        self.mask_downsampler = MaskDownSampler(c, dtype=dtype)
        self.pix_feat_proj = Linear(c, c, dtype=dtype)
        self.fuser = nnx.Dict(layers=nnx.List([CXBlock(c, dtype=dtype) for _ in range(2)]))
        self.out_proj = Linear(c, config.mem_dim, dtype=dtype)

    def __call__(self, embedding: jax.Array, masks: jax.Array) -> jax.Array:
        """Encode `masks [K, S, S]` in [-10, 10] with the slice features `embedding [B, h, w, C]`.

        The K / B objects of one slice are consecutive rows of `masks`. Returns `[K, h, w, mem_dim]`.
        """
        features, encoded_masks = self.pix_feat_proj(embedding), self.mask_downsampler(masks[..., None])
        x = repeat_per_object(features, len(encoded_masks)) + encoded_masks
        for layer in self.fuser["layers"]:
            x = layer(x)
        return self.out_proj(x)
