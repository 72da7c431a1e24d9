"""Building blocks shared by the parts of SAM 2: linear maps, MLPs, norms and resizing, channels last.

Parameters are float32 and start as zeros (`initial.py` has the values). Products run in `dtype` and accumulate in
float32; norms are always float32. With `dtype=float32` products ask for the highest precision, which is not the
default on TPU and recent GPUs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike


def precision_of(dtype: DTypeLike) -> lax.Precision:
    """Matmul precision of a compute dtype: `HIGHEST` for float32, the platform's default otherwise."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def parameter(*shape: int) -> nnx.Param:
    """A float32 parameter. Modules only hold structure: `initial` or a checkpoint gives the values."""
    return nnx.Param(jnp.zeros(shape))


def product(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`x @ kernel` over the last axis, in `dtype` with float32 accumulation: `[..., in]` to `[..., out]`.

    Rows are flattened, since the kernel's gradient over several axes takes XLA three times as long on CPU.
    """
    y = jnp.matmul(
        x.astype(dtype).reshape(-1, x.shape[-1]),
        kernel.astype(dtype),
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )
    return y.astype(dtype).reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis; also SAM 2's 1x1 convolutions."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike):
        self.kernel = parameter(in_features, out_features)
        self.bias = parameter(out_features)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., in_features]` to `[..., out_features]` in the compute dtype."""
        return product(x, self.kernel[...], self.dtype) + self.bias[...].astype(self.dtype)


class ConvTranspose2x2(nnx.Module):
    """PyTorch's `ConvTranspose2d(kernel_size=2, stride=2)`: its windows do not overlap, so it is one product."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike):
        self.kernel = parameter(in_features, 2, 2, out_features)
        self.bias = parameter(out_features)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, h, w, in]` to `[B, 2h, 2w, out]`."""
        b, h, w, _ = x.shape
        kernel = self.kernel[...]
        y = product(x, kernel.reshape(kernel.shape[0], -1), self.dtype)
        y = y.reshape(b, h, w, 2, 2, -1).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1)
        return y + self.bias[...].astype(self.dtype)


def layer_norm(features: int, *, eps: float, dtype: DTypeLike) -> nnx.LayerNorm:
    """LayerNorm over channels in float32, returned in the compute dtype (also SAM 2's `LayerNorm2d`)."""
    return nnx.LayerNorm(features, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=nnx.Rngs(0))


class Conv(nnx.Module):
    """A square 2D convolution with PyTorch's symmetric padding, as one product of shifted slices and kernel.

    SAM 2's convolutions are few and small. XLA's own have gradients that take ten times as long on CPU, and channel
    counts (1, 3, 4, 16) that leave a TPU's matrix unit idle.
    """

    def __init__(
        self, in_features: int, out_features: int, *, kernel: int, stride: int, padding: int, dtype: DTypeLike
    ):
        self.kernel = parameter(kernel, kernel, in_features, out_features)
        self.bias = parameter(out_features)
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, in]` to `[B, H', W', out]`."""
        k, p, s = self.kernel.shape[0], self.padding, self.stride
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (p, p), (p, p), (0, 0)))
        h, w = (x.shape[1] - k) // s + 1, (x.shape[2] - k) // s + 1
        shifted = [x[:, i : i + s * (h - 1) + 1 : s, j : j + s * (w - 1) + 1 : s] for i in range(k) for j in range(k)]
        patches = jnp.concatenate(shifted, axis=-1)
        kernel = self.kernel[...].reshape(patches.shape[-1], -1)
        return product(patches, kernel, self.dtype) + self.bias[...].astype(self.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU that SAM 2 was trained with, by erf: `jax.nn.gelu` goes by erfc, some fifty operations."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


class MLP(nnx.Module):
    """Linear layers with an activation between them (`sam2_utils.MLP`)."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        dtype: DTypeLike,
    ):
        self.layers = nnx.List([Linear(n, k, dtype=dtype) for n, k in itertools.pairwise(widths)])
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., widths[0]]` to `[..., widths[-1]]`."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def resize_masks(masks: jax.Array, size: int) -> jax.Array:
    """Bilinear resize of `[..., s, s]` maps to `[..., size, size]` with half-pixel centres, antialiased when shrinking.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=True)`.
    """
    shape = (*masks.shape[:-2], size, size)
    return jax.image.resize(masks, shape, "linear", antialias=True, precision=lax.Precision.HIGHEST)
