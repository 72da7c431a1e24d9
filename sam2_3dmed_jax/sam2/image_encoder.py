"""Trunk and FPN neck (`backbones/image_encoder.py`), down to the three levels that SAM 2 keeps.

The mask decoder's `conv_s0` and `conv_s1` follow a lateral 1x1 convolution, so the two are one product (`then`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Remat, Sam2Config
from sam2_3dmed_jax.sam2.hiera import Hiera
from sam2_3dmed_jax.sam2.layers import Linear


class FpnNeck(nnx.Module):
    """Lateral 1x1 convolutions, with one top-down sum: stride 32 into stride 16 (`fpn_top_down_levels: [2, 3]`)."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        channels = [config.trunk.embed_dim * 2**i for i in range(4)]
        # Stored from the coarsest level on, as in the reference.
        self.convs = nnx.List([Linear(c, config.d_model, dtype=dtype) for c in reversed(channels)])

    def __call__(
        self, features: list[jax.Array], after: tuple[Linear, Linear] | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Merge the trunk's four maps.

        Args:
            features: of strides 4, 8, 16 and 32.
            after: 1x1 convolutions to apply to strides 4 and 8.

        Returns:
            Strides 4, 8 and 16, each with `d_model` channels, or as many as `after` leaves.
        """
        stride4, stride8, stride16, stride32 = features
        top = self.convs[0](stride32)
        top = jnp.repeat(jnp.repeat(top, 2, axis=1), 2, axis=2)  # nearest
        middle = self.convs[1](stride16) + top
        if after is None:
            return self.convs[3](stride4), self.convs[2](stride8), middle
        return self.convs[3].then(after[0], stride4), self.convs[2].then(after[1], stride8), middle


class ImageEncoder(nnx.Module):
    """From slices to FPN levels."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        self.trunk = Hiera(config.trunk, dtype=dtype)
        self.neck = FpnNeck(config, dtype=dtype)

    def __call__(
        self, images: jax.Array, after: tuple[Linear, Linear], remat: Remat = "none"
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encode `images [B, S, S, 3]`; returns `[B, S/4, S/4, C/8]`, `[B, S/8, S/8, C/4]`, `[B, S/16, S/16, C]`.

        The first two have gone through the 1x1 convolutions `after`; `remat` is of each block of the trunk.
        """
        return self.neck(self.trunk(images, remat), after)
