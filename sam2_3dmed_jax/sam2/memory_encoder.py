"""Memory encoder (`memory_encoder.py`): a slice's features and its mask become a memory of `mem_dim` channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.layers import Conv, Linear, gelu, layer_norm, parameter


class MaskDownSampler(nnx.Module):
    """Four strided 3x3 convolutions with norm and GELU, each with four times the channels, then a 1x1."""

    def __init__(self, embed_dim: int, *, dtype: DTypeLike):
        channels = (1, 4, 16, 64, 256)
        layers: list = []
        for i in range(4):
            layers += [
                Conv(channels[i], channels[i + 1], kernel=3, stride=2, padding=1, dtype=dtype),
                layer_norm(channels[i + 1], eps=1e-6, dtype=dtype),
                gelu,
            ]
        self.encoder = nnx.List([*layers, Linear(channels[-1], embed_dim, dtype=dtype)])

    def __call__(self, masks: jax.Array) -> jax.Array:
        """Map `masks [K, S, S, 1]` to `[K, S/16, S/16, C]`."""
        x = masks
        for layer in self.encoder:
            x = layer(x)
        return x


class DepthwiseConv7x7(nnx.Module):
    """A depthwise 7x7 convolution as 49 shifted multiply-adds: XLA's own is some 60 times slower on CPU."""

    def __init__(self, dim: int, *, dtype: DTypeLike):
        self.kernel = parameter(7, 7, dim)
        self.bias = parameter(dim)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[K, h, w, C]` to `[K, h, w, C]`, zero-padded by 3."""
        h, w = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0))).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        total = jnp.zeros(x.shape, jnp.float32)
        for i in range(7):
            for j in range(7):
                total = total + (padded[:, i : i + h, j : j + w] * kernel[i, j]).astype(jnp.float32)
        return total.astype(self.dtype) + self.bias[...].astype(self.dtype)


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
        return x + self.gamma[...].astype(x.dtype) * y


class MemoryEncoder(nnx.Module):
    """Sum of projected features and downsampled mask, two ConvNeXt blocks, projection to `mem_dim`."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        c = config.d_model
        self.mask_downsampler = MaskDownSampler(c, dtype=dtype)
        self.pix_feat_proj = Linear(c, c, dtype=dtype)
        self.fuser = nnx.Dict(layers=nnx.List([CXBlock(c, dtype=dtype) for _ in range(2)]))
        self.out_proj = Linear(c, config.mem_dim, dtype=dtype)

    def __call__(self, embedding: jax.Array, masks: jax.Array) -> jax.Array:
        """Encode `embedding [K, h, w, C]` and `masks [K, S, S]` in [-10, 10]; returns `[K, h, w, mem_dim]`."""
        x = self.pix_feat_proj(embedding) + self.mask_downsampler(masks[..., None])
        for layer in self.fuser["layers"]:
            x = layer(x)
        return self.out_proj(x)
