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


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel of `x [K, h, w, C]` with its own `kernel [k, k, C]`, zero-padded, in float32.

    Shifted multiply-adds, which fuse into one loop: XLA's own is some 60 times slower on CPU.
    """
    size = kernel.shape[0]
    h, w = x.shape[1:3]
    padded = _padded(x, size // 2)
    total = jnp.zeros(x.shape, jnp.float32)
    for i in range(size):
        for j in range(size):
            total = total + (padded[:, i : i + h, j : j + w] * kernel[i, j]).astype(jnp.float32)
    return total


def _padded(x: jax.Array, by: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0)))


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Left to itself, XLA would add up 49 padded maps; the transpose is the same loop with the kernel turned."""
    x, kernel = saved
    size = kernel.shape[0]
    h, w = x.shape[1:3]
    padded = _padded(x, size // 2).astype(jnp.float32)
    columns = jnp.stack([padded[:, :, j : j + w] for j in range(size)], axis=3)  # [K, h + k - 1, w, k, C]
    of_kernel = [(columns[:, i : i + h] * gradient[:, :, :, None]).sum((0, 1, 2)) for i in range(size)]
    of_x = depthwise(gradient, kernel[::-1, ::-1].astype(jnp.float32))
    return of_x.astype(x.dtype), jnp.stack(of_kernel).astype(kernel.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseConv7x7(nnx.Module):
    """A depthwise 7x7 convolution."""

    def __init__(self, dim: int, *, dtype: DTypeLike):
        self.kernel = parameter(7, 7, dim)
        self.bias = parameter(dim)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[K, h, w, C]` to `[K, h, w, C]`, zero-padded by 3."""
        y = depthwise(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y.astype(self.dtype) + self.bias[...].astype(self.dtype)


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
        """Encode `masks [K, S, S]` in [-10, 10] with `embedding [B, h, w, C]`, K / B neighbours a slice.

        Returns:
            `[K, h, w, mem_dim]`.
        """
        of_slices, of_masks = self.pix_feat_proj(embedding), self.mask_downsampler(masks[..., None])
        x = jnp.repeat(of_slices, of_masks.shape[0] // of_slices.shape[0], axis=0) + of_masks
        for layer in self.fuser["layers"]:
            x = layer(x)
        return self.out_proj(x)
