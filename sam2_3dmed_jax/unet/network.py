"""Residual 3D U-Net: a residual encoder, a plain decoder, and logits at each resolution of the decoder.

nnU-Net's ResEnc (Isensee et al. 2024; `ResidualEncoderUNet` of dynamic-network-architectures): a convolutional stem,
stages of residual blocks of which the first one strides, one convolution after each transposed convolution, instance
norm, and leaky ReLU.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Remat, UNetConfig
from sam2_3dmed_jax.sam2.initializers import transposed_glorot_uniform
from sam2_3dmed_jax.sam2.layers import add_bias, parameter, product, with_leading_axes
from sam2_3dmed_jax.sam2.remat import remat
from sam2_3dmed_jax.unet.convolution import convolve
from sam2_3dmed_jax.unet.topology import Triple, unet_stages

EPSILON = 1e-5
SLOPE = 0.01  # slope of leaky ReLU for negative values
ONES: Triple = (1, 1, 1)  # a kernel or stride of one voxel

# In addition to `sam2.initializers.SAM2_INITIALIZERS`.
UNET_INITIALIZERS = ((r"upsample\.kernel$", transposed_glorot_uniform),)


def leaky_relu(x: jax.Array) -> jax.Array:
    """Return `x` where it is positive and `SLOPE * x` elsewhere."""
    return jnp.where(x > 0, x, x * jnp.asarray(SLOPE, x.dtype))


class InstanceNorm(nnx.Module):
    """Normalises each channel of a patch to mean 0 and standard deviation 1 over its voxels, in float32."""

    def __init__(self, features: int):
        self.scale = parameter(features)
        self.bias = parameter(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, C]` to the same shape."""
        wide = x.astype(jnp.float32)
        mean = wide.mean((1, 2, 3), keepdims=True)
        variance = jnp.square(wide - mean).mean((1, 2, 3), keepdims=True)
        unit = (wide - mean) * lax.rsqrt(variance + EPSILON)
        return add_bias(unit * with_leading_axes(self.scale[...], x.ndim), self.bias[...]).astype(x.dtype)


class ConvNorm(nnx.Module):
    """A 3D convolution with an odd kernel and an instance norm; it has no bias, because the norm would remove it."""

    def __init__(self, features_in: int, features: int, kernel: Triple, stride: Triple, *, dtype: DTypeLike):
        self.kernel = parameter(*kernel, features_in, features)
        self.norm = InstanceNorm(features)
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, in]` to `[B, d', h', w', out]`."""
        return self.norm(convolve(x, self.kernel[...], self.stride, self.dtype))


class ResidualBlock(nnx.Module):
    """Two convolutions and a shortcut with mean pooling and a projection where they are needed (`BasicBlockD`)."""

    def __init__(self, features_in: int, features: int, kernel: Triple, stride: Triple, *, dtype: DTypeLike):
        self.first = ConvNorm(features_in, features, kernel, stride, dtype=dtype)
        self.second = ConvNorm(features, features, kernel, ONES, dtype=dtype)
        self.shortcut = ConvNorm(features_in, features, ONES, ONES, dtype=dtype) if features_in != features else None
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, in]` to `[B, d', h', w', out]`."""
        y = self.second(leaky_relu(self.first(x)))
        b, d, h, w, c = x.shape
        z, v, u = self.stride
        x = x.reshape(b, d // z, z, h // v, v, w // u, u, c).mean((2, 4, 6))
        return leaky_relu(y + (self.shortcut(x) if self.shortcut else x))


class Upsample(nnx.Module):
    """A transposed convolution whose kernel is its stride; its windows do not overlap, so it is one product."""

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
        return add_bias(y, self.bias[...])


class Head(nnx.Module):
    """A 1x1x1 convolution to float32 logits."""

    def __init__(self, features: int, outputs: int, *, dtype: DTypeLike):
        self.kernel = parameter(features, outputs)
        self.bias = parameter(outputs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, d, h, w, C]` to `[B, d, h, w, outputs]`."""
        return add_bias(product(x, self.kernel[...], self.dtype).astype(jnp.float32), self.bias[...])


class DecoderStage(nnx.Module):
    """One resolution of the decoder, from the next coarser map and the encoder's map of this resolution."""

    def __init__(self, below: int, features: int, stride: Triple, kernel: Triple, outputs: int, *, dtype: DTypeLike):
        self.upsample = Upsample(below, features, stride, dtype=dtype)
        self.conv = ConvNorm(2 * features, features, kernel, ONES, dtype=dtype)
        self.head = Head(features, outputs, dtype=dtype)

    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        """Map `x [B, d, h, w, below]` and `skip [B, d', h', w', C]` to the shape of `skip`."""
        return leaky_relu(self.conv(jnp.concatenate([self.upsample(x), skip], axis=-1)))


class UNet(nnx.Module):
    """Maps patches of a volume to logits of background and classes."""

    info: Any  # `model.checkpoint.CheckpointInfo`, set by the functions that build or load a model

    def __init__(self, config: UNetConfig, dtype: DTypeLike):
        """Build the structure.

        Raises:
            UserError: the settings do not describe a network (`topology.unet_stages`).
        """
        self.config = config
        stages = unet_stages(config)
        outputs = 1 + len(config.classes)
        self.stem = ConvNorm(1, stages[0].features, stages[0].kernel, ONES, dtype=dtype)
        encoder, width = [], stages[0].features
        for stage in stages:
            blocks = [ResidualBlock(width, stage.features, stage.kernel, stage.stride, dtype=dtype)]
            width = stage.features
            blocks += [ResidualBlock(width, width, stage.kernel, ONES, dtype=dtype) for _ in range(stage.blocks - 1)]
            encoder.append(nnx.List(blocks))
        self.encoder = nnx.List(encoder)
        self.decoder = nnx.List(
            [
                DecoderStage(below.features, stage.features, below.stride, stage.kernel, outputs, dtype=dtype)
                for stage, below in zip(stages[-2::-1], stages[:0:-1], strict=True)
            ]
        )

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Return logits float32 `[B, D, H, W, 1 + classes]` of patches `[B, D, H, W]` in [0, 1]."""
        *_, (stage, x) = self._decode(patches)
        return stage.head(x)

    def deep_supervision_logits(self, patches: jax.Array, remat_policy: Remat = "none") -> list[jax.Array]:
        """Return logits at each resolution of the decoder, the finest first.

        `remat_policy` applies to each residual block.
        """
        return [stage.head(x) for stage, x in self._decode(patches, remat_policy)][::-1]

    def _decode(self, patches: jax.Array, remat_policy: Remat = "none") -> list[tuple[DecoderStage, jax.Array]]:
        x = leaky_relu(self.stem(standardise(patches)[..., None]))
        maps = []
        for blocks in self.encoder:
            for block in blocks:
                x = remat(block, remat_policy)(x)
            maps.append(x)
        decoded = []
        for stage, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = stage(x, skip)
            decoded.append((stage, x))
        return decoded


def standardise(unit: jax.Array) -> jax.Array:
    """Map windowed values in [0, 1] to about mean 0 and standard deviation 1."""
    return (unit - 0.5) * 4.0
