"""Image encoder (`backbones/image_encoder.py`): the trunk and the FPN neck, down to the three levels that SAM 2 uses.

The mask decoder's 1x1 convolutions `conv_s0` and `conv_s1` are applied here, because each of them follows a lateral 1x1
convolution of the neck directly and the pair is one product.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Remat, Sam2Config
from sam2_3dmed_jax.sam2.hiera import Hiera
from sam2_3dmed_jax.sam2.layers import Linear, apply_in_sequence, upsample_2x_nearest


class FpnNeck(nnx.Module):
    """Lateral 1x1 convolutions, with one top-down sum: stride 32 into stride 16 (`fpn_top_down_levels: [2, 3]`)."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        channels = [config.trunk.embed_dim * 2**i for i in range(4)]
        # Numbered from the coarsest level, as upstream.
        self.convs = nnx.List([Linear(c, config.d_model, dtype=dtype) for c in reversed(channels)])

    def __call__(
        self, features: list[jax.Array], conv_s0: Linear | None = None, conv_s1: Linear | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Merge the four feature maps of the trunk.

        Args:
            features: maps with strides 4, 8, 16 and 32.
            conv_s0: 1x1 convolution to apply to the result with stride 4.
            conv_s1: 1x1 convolution to apply to the result with stride 8.

        Returns:
            Maps with strides 4, 8 and 16; each has `d_model` channels, or those of `conv_s0` and `conv_s1`.
        """
        stride4, stride8, stride16, stride32 = features
        lateral32, lateral16, lateral8, lateral4 = self.convs
        top_down = upsample_2x_nearest(lateral32(stride32))
        merged = lateral16(stride16) + top_down
        return apply_in_sequence(stride4, lateral4, conv_s0), apply_in_sequence(stride8, lateral8, conv_s1), merged


class ImageEncoder(nnx.Module):
    """From slices to FPN levels."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        self.trunk = Hiera(config.trunk, dtype=dtype)
        self.neck = FpnNeck(config, dtype=dtype)

    def __call__(
        self, images: jax.Array, conv_s0: Linear, conv_s1: Linear, remat_policy: Remat = "none"
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encode `images [B, S, S, 3]`; returns `[B, S/4, S/4, C/8]`, `[B, S/8, S/8, C/4]`, `[B, S/16, S/16, C]`.

        The first two are the results of `conv_s0` and `conv_s1`; `remat_policy` applies to each block of the trunk.
        """
        return self.neck(self.trunk(images, remat_policy), conv_s0, conv_s1)
