"""Layers shared by the modules of SAM 2: linear maps, convolutions, MLP, norms, pooling and resizing, channels last.

Parameters are float32 and start as zeros (`initializers.py` has the initial values). Products run in `dtype` and
accumulate in float32; norms are always float32. With `dtype=float32`, products ask for the highest precision, which is
not the default on TPUs and recent GPUs. Forms of a layer that exist only for speed are in this file and `attention.py`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.image import ResizeMethod
from jax.typing import DTypeLike

from sam2_3dmed_jax.sam2.local_rows import on_local_rows

PRODUCT = "product"  # name of the results of products with weights in 16 bits, for `remat.py`


def precision_of(dtype: DTypeLike) -> lax.Precision:
    """Return the matmul precision of a compute dtype: `HIGHEST` for float32, the platform's default otherwise."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def parameter(*shape: int) -> nnx.Param[jax.Array]:
    """Return a float32 parameter of zeros; `initializers.py` or a checkpoint provides the values."""
    return nnx.Param(jnp.zeros(shape))


def product(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Return `x @ kernel` over the last axis, in `dtype` with float32 accumulation: `[..., in]` to `[..., out]`."""
    return _named(_product(x, kernel, dtype))


def _named(y: jax.Array) -> jax.Array:
    """Name a product with weights for `remat.py`, if it has 16 bits."""
    if y.dtype == jnp.float32:
        return y
    named: jax.Array = checkpoint_name(y, PRODUCT)  # type: ignore[no-untyped-call]
    return named


def _product(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Compute `product`.

    The leading axes are flattened, because on CPU the kernel's gradient over several axes takes XLA three times as
    long.
    """
    rows = x.astype(dtype).reshape(-1, x.shape[-1])
    if jnp.dtype(dtype) == jnp.float32:
        y = jnp.matmul(rows, kernel.astype(dtype), precision=lax.Precision.HIGHEST)
    else:
        y = _half_precision_product(rows, kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _half_precision_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return `x [n, in] @ kernel [in, out]` in the dtype of `x`, which has 16 bits, with float32 accumulation.

    On GPUs the library rounds the result, so that neither the result nor its gradient is written in float32. Elsewhere
    the product is in float32, and the rounding is left to XLA.
    """
    y: jax.Array = lax.platform_dependent(
        x, kernel, cuda=_rounded_product, rocm=_rounded_product, default=_float32_product
    )
    return y


def _float32_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _rounded_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel.astype(x.dtype))


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _half_precision_product(x, kernel), (x, kernel)


def _product_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    gradients: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        *residuals,
        gradient,
        cuda=_rounded_product_gradients,
        rocm=_rounded_product_gradients,
        default=lambda x, kernel, gradient: jax.vjp(_float32_product, x, kernel)[1](gradient),
    )
    return gradients


def _rounded_product_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `x`, rounded by the library, and of `kernel`, in float32 if the kernel is."""
    kernel_gradient = jnp.matmul(x.T, gradient, preferred_element_type=kernel.dtype)
    return jnp.matmul(gradient, kernel.astype(x.dtype).T), kernel_gradient


_half_precision_product.defvjp(_product_forward, _product_backward)


def with_leading_axes(x: jax.Array | np.ndarray, ndim: int) -> jax.Array:
    """Return `x` with `ndim` axes: new axes of length 1 in front, so that it broadcasts over leading axes.

    JAX does the same implicitly, unless `jax_numpy_rank_promotion` forbids it, as in the tests.
    """
    return lax.expand_dims(x, range(ndim - x.ndim))


def add_broadcast(y: jax.Array, x: jax.Array) -> jax.Array:
    """Return `y + x` in the dtype of `y`, of an `x` that broadcasts to the shape of `y`; they are added in float32.

    Added in 16 bits, the gradient of `x` would be a sum over the cells of `y` in 16 bits, which stays at 256 when it is
    over 65,536 ones.
    """
    return (y.astype(jnp.float32) + x.astype(y.dtype).astype(jnp.float32)).astype(y.dtype)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Add `bias [C]` to `y [..., C]`, in the dtype of `y`."""
    return add_broadcast(y, with_leading_axes(bias, y.ndim))


def add_scaled(x: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
    """Return `x + scale * y` for `scale [C]` and maps `[..., C]`, in their dtype and computed in float32."""
    return _add_scaled(x, y, scale) if x.dtype == jnp.float32 else keep_arguments(_add_scaled, x, y, scale)


def _add_scaled(x: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
    scaled = with_leading_axes(scale.astype(jnp.float32), x.ndim) * y.astype(jnp.float32)
    return (x.astype(jnp.float32) + scaled).astype(x.dtype)


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Return `x @ kernel + bias` over the last axis, in `dtype` with float32 accumulation."""
    if jnp.dtype(dtype) == jnp.float32:
        return add_bias(product(x, kernel, dtype), bias)
    rows = x.astype(dtype).reshape(-1, x.shape[-1])
    y: jax.Array = lax.platform_dependent(
        *(rows, kernel, bias),
        tpu=_biased_product,
        default=lambda rows, kernel, bias: add_bias(_half_precision_product(rows, kernel), bias),
    )
    return _named(y).reshape(*x.shape[:-1], kernel.shape[-1])


def _biased_product(rows: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Return `rows [n, in] @ kernel [in, out] + bias` in 16 bits, rounded once, which a TPU computes in one loop."""
    y = jnp.matmul(rows, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)
    ordered: jax.Array = _in_order(add_bias(y, bias.astype(rows.dtype)).astype(rows.dtype))
    return ordered


@on_local_rows
def _in_order(rows: jax.Array) -> jax.Array:
    """Store `[n, C]` row by row: XLA would store a product on TPU column by column, and copy it for what follows."""
    ordered: jax.Array = with_layout_constraint(rows, Layout((0, 1)))  # type: ignore[no-untyped-call]
    return ordered


def in_order(x: jax.Array) -> jax.Array:
    """Return `x [..., C]`, which a TPU stores in the order of its axes if it has 16 bits."""
    if x.dtype == jnp.float32:
        return x
    rows = x.reshape(-1, x.shape[-1])
    ordered: jax.Array = lax.platform_dependent(rows, tpu=_in_order, default=lambda rows: rows)
    return ordered.reshape(x.shape)


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis; also SAM 2's 1x1 convolutions."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike):
        self.kernel = parameter(in_features, out_features)
        self.bias = parameter(out_features)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., in_features]` to `[..., out_features]` in the compute dtype."""
        return affine(x, self.kernel[...], self.bias[...], self.dtype)

    def parts(self, x: jax.Array, count: int, window: int = 0) -> tuple[jax.Array, ...]:
        """Return `jnp.split(self(x), count, axis=-1)`; with `window`, of `window_partition(x, window)`.

        On TPU each part is a product of its own, because splitting would copy the whole map, and so would padding it.
        Elsewhere windows are cut from the products, whose padding equals the bias (at 512 px the padding is two fifths
        of all cells of the windows that reach beyond the slice).
        """
        kernel, bias = self.kernel[...], self.bias[...]

        def split_products(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
            y = _product(x, kernel, self.dtype)
            return tuple(jnp.split(add_bias(window_partition(y, window) if window else y, bias), count, axis=-1))

        def products_of_parts(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
            x = window_partition(x, window) if window else x
            rows = x.reshape(-1, x.shape[-1])
            each = zip(jnp.split(kernel, count, axis=-1), jnp.split(bias, count), strict=True)
            return tuple(_biased_product(rows, *own).reshape(*x.shape[:-1], -1) for own in each)

        if jnp.dtype(self.dtype) == jnp.float32:
            return split_products(x, kernel, bias)
        parts: tuple[jax.Array, ...] = lax.platform_dependent(
            x.astype(self.dtype), kernel, bias, tpu=products_of_parts, default=split_products
        )
        return tuple(map(_named, parts))

    def with_channel_order(self, x: jax.Array, reorder: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Return `reorder(self(x))` for a permutation `reorder` of the last axis.

        The permutation is applied to the kernel and the bias, which are smaller than the result.
        """
        return affine(x, reorder(self.kernel[...]), reorder(self.bias[...]), self.dtype)


def apply_in_sequence(x: jax.Array, first: Linear, second: Linear | None) -> jax.Array:
    """Return `second(first(x))`, or `first(x)` if `second` is None, as one product.

    The kernels are multiplied instead of the maps: this equals the two products exactly, in real arithmetic, and the
    wide map between them is never computed.
    """
    if second is None:
        return first(x)
    precision = lax.Precision.HIGHEST
    kernel = jnp.matmul(first.kernel[...], second.kernel[...], precision=precision)
    bias = jnp.matmul(first.bias[...], second.kernel[...], precision=precision) + second.bias[...]
    return affine(x, kernel, bias, first.dtype)


def window_partition(x: jax.Array, side: int) -> jax.Array:
    """Cut `[B, H, W, C]`, zero-padded at its end, into windows `[B * windows, side, side, C]`."""
    b, h, w, c = x.shape
    ph, pw = -h % side, -w % side
    if ph or pw:
        x = jnp.pad(x, ((0, 0), (0, ph), (0, pw), (0, 0)))
    x = x.reshape(b, (h + ph) // side, side, (w + pw) // side, side, c)
    return x.swapaxes(2, 3).reshape(-1, side, side, c)


def window_unpartition(windows: jax.Array, side: int, h: int, w: int) -> jax.Array:
    """Undo `window_partition` for a grid of `h x w`: `[B * windows, side, side, C]` to `[B, h, w, C]`."""
    rows, cols = -(-h // side), -(-w // side)
    x = windows.reshape(-1, rows, cols, side, side, windows.shape[-1]).swapaxes(2, 3)
    return x.reshape(x.shape[0], rows * side, cols * side, -1)[:, :h, :w]


class ConvTranspose2x2(nnx.Module):
    """PyTorch's `ConvTranspose2d(kernel_size=2, stride=2)`; its windows do not overlap, so it is one product."""

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
        return add_bias(y, self.bias[...])


def keep_arguments(function: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
    """Return `function(*arguments)`; the backward pass keeps its arguments alone and computes the rest again.

    This is for cheap functions in 16 bits whose intermediate values are float32, and several times the arguments.
    """
    return _keep_arguments(function, *arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _keep_arguments(function: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
    return function(*arguments)


_keep_arguments.defvjp(
    lambda function, *arguments: (function(*arguments), arguments),
    lambda function, arguments, gradient: jax.vjp(function, *arguments)[1](gradient),
)


class LayerNorm(nnx.LayerNorm):
    """A LayerNorm over channels in float32 with output in the compute dtype."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Map `[..., C]` to `[..., C]`."""
        if jnp.dtype(self.dtype) == jnp.float32:
            y: jax.Array = super().__call__(x)
            return y
        assert self.scale is not None and self.bias is not None
        x, scale, bias = (a.astype(self.dtype) for a in (x, self.scale[...], self.bias[...]))
        return keep_arguments(functools.partial(_layer_norm, self.epsilon), x, scale, bias)


def _layer_norm(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalise `x [..., C]` as `nnx.LayerNorm` does, in float32; returns the dtype of `x`."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    y = (wide - mean) * (lax.rsqrt(variance + epsilon) * with_leading_axes(scale, x.ndim))
    return (y + with_leading_axes(bias, x.ndim)).astype(x.dtype)


def layer_norm(features: int, *, eps: float, dtype: DTypeLike) -> LayerNorm:
    """Return a LayerNorm over channels in float32 with output in the compute dtype (also SAM 2's `LayerNorm2d`)."""
    return LayerNorm(features, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=nnx.Rngs(0))


class Conv(nnx.Module):
    """A square 2D convolution with PyTorch's symmetric padding, as one product of shifted maps and kernel.

    SAM 2's convolutions are few and small. XLA's convolution has gradients that take ten times as long on CPU, and
    channel counts (1, 3, 4, 16) that leave a TPU's matrix unit idle. Along the width, pixels are grouped into blocks
    of one stride, which are contiguous in memory, so that nothing is transposed: a 7x7 kernel with stride 4 reads 7
    rows of two blocks.
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
        lead = -padding % stride  # extra zero columns, so that the padding in front is whole blocks
        blocks = -(-(size + lead) // stride)  # blocks that a window reads along the width
        shape = (h - 1 - (-size // stride)) * stride, (w + blocks - 1) * stride
        # Rows and columns at the end that no window reads are cut by a negative padding.
        pads = [
            (front, padded - current - front, 0)
            for front, padded, current in zip((padding, padding + lead), shape, x.shape[1:3], strict=True)
        ]
        channels = x.shape[-1]
        pads[1] = (pads[1][0] * channels, pads[1][1] * channels, 0)
        x = x.astype(self.dtype).reshape(*x.shape[:2], -1)  # three channels alone would fill 3 of a TPU's 128 lanes
        x = lax.pad(x, jnp.zeros((), self.dtype), ((0, 0, 0), *pads))
        x = x.reshape(*x.shape[:2], w + blocks - 1, -1)
        x = jnp.concatenate([x[:, :, j : j + w] for j in range(blocks)], axis=-1)
        x = x.reshape(x.shape[0], -1, stride, w, x.shape[-1])
        rows = [x[:, i // stride : i // stride + h, i % stride] for i in range(size)]
        taps = jnp.pad(kernel, ((0, 0), (lead, blocks * stride - size - lead), (0, 0), (0, 0)))
        return affine(jnp.concatenate(rows, axis=-1), taps.reshape(-1, taps.shape[-1]), self.bias[...], self.dtype)


@jax.custom_vjp
def depthwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel of `x [K, h, w, C]` with its own `kernel [k, k, C]`, zero-padded, in float32.

    The shifted multiply-adds fuse into one loop; XLA's own convolution is some 60 times slower on CPU.
    """
    size = kernel.shape[0]
    h, w = x.shape[1:3]
    padded = _pad_borders(x, size // 2)
    total = jnp.zeros(x.shape, jnp.float32)
    for i in range(size):
        for j in range(size):
            total = total + (padded[:, i : i + h, j : j + w] * with_leading_axes(kernel[i, j], 4)).astype(jnp.float32)
    # On GPUs, XLA would try to fuse the 49 shifts into the layer norm that follows, and not end within 12 minutes.
    separate: jax.Array = lax.platform_dependent(
        total, cuda=lax.optimization_barrier, rocm=lax.optimization_barrier, default=lambda whole: whole
    )
    return separate


def _pad_borders(x: jax.Array, width: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_convolution(x, kernel), (x, kernel)


def _depthwise_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `x` and `kernel`.

    On GPUs the convolution library computes them. Elsewhere, automatic differentiation would make XLA add up 49
    padded maps; the transpose is the same loop with the kernel rotated by 180 degrees.
    """
    gradients: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        *residuals,
        gradient,
        cuda=_library_depthwise_gradients,
        rocm=_library_depthwise_gradients,
        default=_depthwise_gradients,
    )
    return gradients


def _library_depthwise_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y: jax.Array = lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
            precision=precision_of(x.dtype),
        )
        return y

    gradients: tuple[jax.Array, jax.Array] = jax.vjp(convolve, x, kernel)[1](gradient.astype(x.dtype))
    return gradients


def _depthwise_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = kernel.shape[0]
    h, w = x.shape[1:3]
    padded = _pad_borders(x, size // 2).astype(jnp.float32)
    columns = jnp.stack([padded[:, :, j : j + w] for j in range(size)], axis=3)  # [K, h + k - 1, w, k, C]
    kernel_gradient = [(columns[:, i : i + h] * gradient[:, :, :, None]).sum((0, 1, 2)) for i in range(size)]
    x_gradient = depthwise_convolution(gradient, kernel[::-1, ::-1].astype(jnp.float32))
    return x_gradient.astype(x.dtype), jnp.stack(kernel_gradient).astype(kernel.dtype)


depthwise_convolution.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseConv7x7(nnx.Module):
    """A depthwise 7x7 convolution."""

    def __init__(self, dim: int, *, dtype: DTypeLike):
        self.kernel = parameter(7, 7, dim)
        self.bias = parameter(dim)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[K, h, w, C]` to `[K, h, w, C]`, zero-padded by 3."""
        y = depthwise_convolution(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return add_bias(y.astype(self.dtype), self.bias[...])


def gelu(x: jax.Array) -> jax.Array:
    """Return the exact GELU that SAM 2 was trained with.

    It is computed by erf, because `jax.nn.gelu` uses erfc, which takes some fifty operations.
    """
    return _gelu(x) if x.dtype == jnp.float32 else keep_arguments(_gelu, x)


def _gelu(x: jax.Array) -> jax.Array:
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


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Return the maximum over 2 x 2 cells: `[B, H, W, C]` to `[B, H/2, W/2, C]`; an odd row or column is dropped."""
    h, w = x.shape[1:3]
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    if x.dtype == jnp.float32:
        return _maxima_of_pairs(x)
    pooled: jax.Array = lax.platform_dependent(x, tpu=_maxima_of_windows, default=_maxima_of_pairs)
    return pooled


def _maxima_of_pairs(x: jax.Array) -> jax.Array:
    """Compute `max_pool_2x2` by pairs, because the gradient of a reduction counts ties in four passes."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def _maxima_of_windows(x: jax.Array) -> jax.Array:
    """Compute `max_pool_2x2` by a reduction, because a TPU copies the map several times to take pairs of columns."""
    shape = (1, 2, 2, 1)
    pooled: jax.Array = lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, shape, shape, "VALID")
    return pooled


def upsample_2x_nearest(x: jax.Array) -> jax.Array:
    """Repeat each cell: `[B, h, w, C]` to `[B, 2h, 2w, C]`."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def resize_bicubic(x: jax.Array, h: int, w: int) -> jax.Array:
    """Resize `[H, W, C]` to `[h, w, C]` as PyTorch does (`mode="bicubic"`, a = -0.75, without antialiasing)."""
    shape = (h, w, x.shape[-1])
    resized: jax.Array = jax.image.resize(
        x, shape, ResizeMethod.CUBIC_PYTORCH, antialias=False, precision=lax.Precision.HIGHEST
    )
    return resized


def resize_masks(masks: jax.Array, size: int) -> jax.Array:
    """Bilinear resize of `[..., s, s]` maps to `[..., size, size]` with half-pixel centres, antialiased when shrinking.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=True)`.
    """
    shape = (*masks.shape[:-2], size, size)
    resized: jax.Array = jax.image.resize(masks, shape, "linear", antialias=True, precision=lax.Precision.HIGHEST)
    return resized


def repeat_per_object(x: jax.Array, rows: int) -> jax.Array:
    """Repeat rows of slices `[B, ...]` for their objects: `[rows, ...]`, each row `rows / B` times in a run.

    Objects of one slice share all that is computed before this call.
    """
    return jnp.repeat(x, rows // x.shape[0], axis=0)
