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
    """A square 2D convolution with PyTorch's symmetric padding, as one product of shifted blocks and kernel.

    SAM 2's convolutions are few and small. XLA's own have gradients that take ten times as long on CPU, and channel
    counts (1, 3, 4, 16) that leave a TPU's matrix unit idle. Blocks are as large as the stride: a 7x7 kernel with
    stride 4 reads four shifted maps of 4x4 blocks and not 49 strided ones.
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
        size, stride = kernel.shape[0], self.stride
        h, w = ((n + 2 * self.padding - size) // stride + 1 for n in x.shape[1:3])
        lead = -self.padding % stride  # so that the padding in front is whole blocks
        front = self.padding + lead
        shifts = -(-(size + lead) // stride)
        rows, cols = (n + shifts - 1 for n in (h, w))  # blocks
        pads = [(front, count * stride - n - front) for count, n in zip((rows, cols), x.shape[1:3], strict=True)]
        # Rows and columns at the end that no window reads are cut, by a negative padding.
        x = lax.pad(
            x.astype(self.dtype), jnp.zeros((), self.dtype), ((0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0))
        )
        blocks = x.reshape(x.shape[0], rows, stride, cols, stride, -1).swapaxes(2, 3)
        patches, kernels = [], []
        for i in range(shifts):
            for j in range(shifts):
                (down, kernel_down), (across, kernel_across) = (_taps(shift, stride, lead, size) for shift in (i, j))
                block = blocks[:, i : i + h, j : j + w, down, across]
                patches.append(block.reshape(*block.shape[:3], -1))
                kernels.append(kernel[kernel_down, kernel_across].reshape(-1, kernel.shape[-1]))
        y = product(jnp.concatenate(patches, axis=-1), jnp.concatenate(kernels), self.dtype)
        return y + self.bias[...].astype(self.dtype)


def _taps(shift: int, stride: int, lead: int, size: int) -> tuple[slice, slice]:
    """Which pixels of a block that is `shift` blocks on the kernel reads, and with which of its rows."""
    first = shift * stride - lead  # the kernel's row at the block's first pixel
    low, high = max(first, 0), min(first + stride, size)
    return slice(low - first, high - first), slice(low, high)


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
