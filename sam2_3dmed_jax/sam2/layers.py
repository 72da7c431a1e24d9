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

    def __call__(self, x: jax.Array, order: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
        """Map `[..., in_features]` to `[..., out_features]` in the compute dtype; `order` reorders the latter."""
        return product(x, order(self.kernel[...]), self.dtype) + order(self.bias[...]).astype(self.dtype)

    def product(self, x: jax.Array) -> jax.Array:
        """The same without the bias."""
        return product(x, self.kernel[...], self.dtype)

    def then(self, following: Linear, x: jax.Array) -> jax.Array:
        """`following(self(x))` as one product: exact algebra, without the wide map between them."""
        precision = lax.Precision.HIGHEST
        kernel = jnp.matmul(self.kernel[...], following.kernel[...], precision=precision)
        bias = jnp.matmul(self.bias[...], following.kernel[...], precision=precision) + following.bias[...]
        return product(x, kernel, self.dtype) + bias.astype(self.dtype)


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
    """A square 2D convolution with PyTorch's symmetric padding, as one product of shifted maps and kernel.

    SAM 2's convolutions are few and small. XLA's own have gradients that take ten times as long on CPU, and channel
    counts (1, 3, 4, 16) that leave a TPU's matrix unit idle. Across, pixels are taken in blocks of a stride, which
    lie together in memory, so that nothing is transposed: a 7x7 kernel with stride 4 reads 7 rows of two blocks.
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
        kernel = self.kernel[...]
        size, stride, padding = kernel.shape[0], self.stride, self.padding
        h, w = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])
        lead = -padding % stride  # columns, so that the padding in front is whole blocks; the kernel is 0 there
        blocks = -(-(size + lead) // stride)  # that a window reads across
        shape = (h - 1 - (-size // stride)) * stride, (w + blocks - 1) * stride
        # Rows and columns at the end that no window reads are cut, by a negative padding.
        pads = [
            (front, n - had - front, 0)
            for front, n, had in zip((padding, padding + lead), shape, x.shape[1:3], strict=True)
        ]
        x = lax.pad(x.astype(self.dtype), jnp.zeros((), self.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
        x = x.reshape(*x.shape[:2], w + blocks - 1, -1)
        x = jnp.concatenate([x[:, :, j : j + w] for j in range(blocks)], axis=-1)
        x = x.reshape(x.shape[0], -1, stride, w, x.shape[-1])
        rows = [x[:, i // stride : i // stride + h, i % stride] for i in range(size)]
        taps = jnp.pad(kernel, ((0, 0), (lead, blocks * stride - size - lead), (0, 0), (0, 0)))
        y = product(jnp.concatenate(rows, axis=-1), taps.reshape(-1, taps.shape[-1]), self.dtype)
        return y + self.bias[...].astype(self.dtype)


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
