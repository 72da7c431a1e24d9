"""Building blocks shared by the parts of SAM 2: linear maps, MLPs, norms and resizing, channels last.

Parameters are float32 and start as zeros (`initial.py` has the values). Products run in `dtype` and accumulate in float32; norms are always float32. With
`dtype=float32` products ask for the highest precision, which is not the default on TPU and recent GPUs.
"""

from __future__ import annotations

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


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis; also SAM 2's 1x1 convolutions."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike):
        self.kernel = parameter(in_features, out_features)
        self.bias = parameter(out_features)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., in_features]` to `[..., out_features]` in the compute dtype."""
        return self.without_bias(x) + self.bias[...].astype(self.dtype)

    def without_bias(self, x: jax.Array) -> jax.Array:
        """The product alone, for sums that are added up before the bias."""
        y = jnp.matmul(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            precision=precision_of(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return y.astype(self.dtype)


class ConvTranspose2x2(nnx.Module):
    """PyTorch's `ConvTranspose2d(kernel_size=2, stride=2)`: its windows do not overlap, so it is one product."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike):
        self.kernel = parameter(in_features, 2, 2, out_features)
        self.bias = parameter(out_features)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, h, w, in]` to `[B, 2h, 2w, out]`."""
        b, h, w, _ = x.shape
        y = jnp.einsum(
            "bhwc,cijo->bhiwjo",
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            precision=precision_of(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return y.astype(self.dtype).reshape(b, 2 * h, 2 * w, -1) + self.bias[...].astype(self.dtype)


def layer_norm(features: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over channels in float32, returned in the compute dtype (also SAM 2's `LayerNorm2d`)."""
    return nnx.LayerNorm(features, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs)


def conv(
    in_features: int, out_features: int, *, kernel: int, stride: int, padding: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    """A square 2D convolution with PyTorch's symmetric padding, on `[B, H, W, C]`."""
    return nnx.Conv(
        in_features,
        out_features,
        kernel_size=(kernel, kernel),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dtype=dtype,
        precision=precision_of(dtype),
        rngs=rngs,
    )


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU that SAM 2 was trained with."""
    return jax.nn.gelu(x, approximate=False)


class MLP(nnx.Module):
    """Linear layers with an activation between them (`sam2_utils.MLP`)."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        dtype: DTypeLike,
    ):
        self.layers = nnx.List([Linear(n, k, dtype=dtype) for n, k in zip(widths[:-1], widths[1:], strict=True)])
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
