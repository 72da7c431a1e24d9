"""The network: a residual encoder, a plain decoder, and logits at each of the decoder's resolutions.

nnU-Net's ResEnc (Isensee et al. 2024; `ResidualEncoderUNet` of dynamic-network-architectures): a convolution as stem,
residual blocks whose first one strides, a convolution after each transposed one, instance norm, leaky ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Remat, UNetConfig
from sam2_3dmed_jax.sam2.initializers import transposed
from sam2_3dmed_jax.sam2.layers import parameter, product
from sam2_3dmed_jax.sam2.remat import rematerialised
from sam2_3dmed_jax.unet.convolution import convolve
from sam2_3dmed_jax.unet.topology import Triple, stages_of

EPSILON = 1e-5
SLOPE = 0.01  # of leaky ReLU
ONE: Triple = (1, 1, 1)

INITIAL = ((r"upsample\.kernel$", transposed),)  # beside `sam2.initial.RULES`


def activate(x: jax.Array) -> jax.Array:
    """Leaky ReLU."""
    return jnp.where(x > 0, x, x * jnp.asarray(SLOPE, x.dtype))


class InstanceNorm(nnx.Module):
    """Each channel of each patch to mean 0 and SD 1 over its voxels, in float32; then scale and bias."""

    def __init__(self, features: int):
        self.scale = parameter(features)
        self.bias = parameter(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, C]` to the same."""
        wide = x.astype(jnp.float32)
        mean = wide.mean((1, 2, 3), keepdims=True)
        variance = jnp.square(wide - mean).mean((1, 2, 3), keepdims=True)
        return ((wide - mean) * lax.rsqrt(variance + EPSILON) * self.scale[...] + self.bias[...]).astype(x.dtype)


class ConvNorm(nnx.Module):
    """A 3D convolution and an instance norm. An odd kernel, padded evenly; the norm takes a bias away."""

    def __init__(self, features_in: int, features: int, kernel: Triple, stride: Triple, *, dtype: DTypeLike):
        self.kernel = parameter(*kernel, features_in, features)
        self.norm = InstanceNorm(features)
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, in]` to `[B, d', h', w', out]`."""
        return self.norm(convolve(x, self.kernel[...], self.stride, self.dtype))


class Residual(nnx.Module):
    """Two convolutions beside a shortcut, which takes means over strides and changes channels (`BasicBlockD`)."""

    def __init__(self, features_in: int, features: int, kernel: Triple, stride: Triple, *, dtype: DTypeLike):
        self.first = ConvNorm(features_in, features, kernel, stride, dtype=dtype)
        self.second = ConvNorm(features, features, kernel, ONE, dtype=dtype)
        self.shortcut = ConvNorm(features_in, features, ONE, ONE, dtype=dtype) if features_in != features else None
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, in]` to `[B, d', h', w', out]`."""
        y = self.second(activate(self.first(x)))
        b, d, h, w, c = x.shape
        z, v, u = self.stride
        x = x.reshape(b, d // z, z, h // v, v, w // u, u, c).mean((2, 4, 6))
        return activate(y + (self.shortcut(x) if self.shortcut else x))


class Upsample(nnx.Module):
    """A transposed convolution whose kernel is its stride: its windows do not overlap, so it is one product."""

    def __init__(self, features_in: int, features: int, stride: Triple, *, dtype: DTypeLike):
        self.kernel = parameter(features_in, *stride, features)
        self.bias = parameter(features)
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, in]` to `[B, d z, h y, w x, out]`."""
        b, d, h, w, c = x.shape
        z, v, u = self.stride
        y = product(x, self.kernel[...].reshape(c, -1), self.dtype).reshape(b, d, h, w, z, v, u, -1)
        y = y.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, d * z, h * v, w * u, -1)
        return y + self.bias[...].astype(self.dtype)


class Head(nnx.Module):
    """Logits of each voxel, float32."""

    def __init__(self, features: int, outputs: int, *, dtype: DTypeLike):
        self.kernel = parameter(features, outputs)
        self.bias = parameter(outputs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, C]` to `[B, d, h, w, outputs]`."""
        return product(x, self.kernel[...], self.dtype).astype(jnp.float32) + self.bias[...]


class Up(nnx.Module):
    """One resolution of the decoder: from the coarser map and the encoder's map of this resolution."""

    def __init__(self, below: int, features: int, stride: Triple, kernel: Triple, outputs: int, *, dtype: DTypeLike):
        self.upsample = Upsample(below, features, stride, dtype=dtype)
        self.conv = ConvNorm(2 * features, features, kernel, ONE, dtype=dtype)
        self.head = Head(features, outputs, dtype=dtype)

    def __call__(self, x: jax.Array, beside: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, below]` and `[B, d', h', w', C]` to the latter's shape."""
        return activate(self.conv(jnp.concatenate([self.upsample(x), beside], axis=-1)))


class UNet(nnx.Module):
    """A volume in, logits of background and classes out."""

    info: Any  # what the model was made from; whoever builds or loads one says it

    def __init__(self, config: UNetConfig, dtype: DTypeLike):
        """Build the structure.

        Raises:
            UserError: settings that make no network; see `topology.stages_of`.
        """
        self.config = config
        stages = stages_of(config)
        outputs = 1 + len(config.classes)
        self.stem = ConvNorm(1, stages[0].features, stages[0].kernel, ONE, dtype=dtype)
        encoder, width = [], stages[0].features
        for stage in stages:
            blocks = [Residual(width, stage.features, stage.kernel, stage.stride, dtype=dtype)]
            width = stage.features
            blocks += [Residual(width, width, stage.kernel, ONE, dtype=dtype) for _ in range(stage.blocks - 1)]
            encoder.append(nnx.List(blocks))
        self.encoder = nnx.List(encoder)
        self.decoder = nnx.List(
            [
                Up(below.features, stage.features, below.stride, stage.kernel, outputs, dtype=dtype)
                for stage, below in zip(stages[-2::-1], stages[:0:-1], strict=True)
            ]
        )

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Logits float32 `[B, D, H, W, 1 + classes]` of patches `[B, D, H, W]` in [0, 1]."""
        *_, (up, x) = self._decoded(patches)
        return up.head(x)

    def every_scale(self, patches: jax.Array, remat: Remat = "none") -> list[jax.Array]:
        """Logits at each resolution of the decoder, the finest first, for deep supervision.

        `remat` is of each residual block.
        """
        return [up.head(x) for up, x in self._decoded(patches, remat)][::-1]

    def _decoded(self, patches: jax.Array, remat: Remat = "none") -> Sequence[tuple[Up, jax.Array]]:
        x = activate(self.stem(standardised(patches)[..., None]))
        maps = []
        for blocks in self.encoder:
            for block in blocks:
                x = rematerialised(block, remat)(x)
            maps.append(x)
        decoded = []
        for up, beside in zip(self.decoder, maps[-2::-1], strict=True):
            x = up(x, beside)
            decoded.append((up, x))
        return decoded


def standardised(unit: jax.Array) -> jax.Array:
    """Windowed values in [0, 1] to about mean 0 and SD 1."""
    return (unit - 0.5) * 4.0
