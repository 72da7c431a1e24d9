"""Boundary detection (BD): a branch of the mask decoder that predicts the object's boundary and refines its mask.

Paper: in a cross-attention, boundary-aware features are the queries and slice features the keys and values, and the
result is fused into the mask. Ours, where the paper does not say: the queries come from the object's features after the
two-way transformer (so that a boundary belongs to an object), and the fusion adds a zero-initialised projection to the
upscaled embedding from which every mask candidate is computed. See docs/explanation/method.md.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import BdConfig
from sam2_3dmed_jax.sam2.attention import Attention
from sam2_3dmed_jax.sam2.layers import Conv, ConvTranspose2x2, Linear, gelu, layer_norm
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.sam2.position_encoding import sine_position


class Boundary(nnx.Module):
    """Computes boundary logits and a term for the mask's upscaled embedding from object and slice features."""

    def __init__(self, config: BdConfig, channels: int, *, dtype: DTypeLike):
        dim = config.dim
        self.query = Conv(channels, dim, kernel=3, stride=1, padding=1, dtype=dtype)
        self.query_norm = layer_norm(dim, eps=1e-6, dtype=dtype)
        self.slice = Linear(channels, dim, dtype=dtype)
        self.attention = Attention(dim, config.heads, dtype=dtype)
        self.attention_norm = layer_norm(dim, eps=1e-6, dtype=dtype)
        self.up8 = ConvTranspose2x2(dim, channels // 4, dtype=dtype)
        self.up8_norm = layer_norm(channels // 4, eps=1e-6, dtype=dtype)
        self.up4 = ConvTranspose2x2(channels // 4, channels // 8, dtype=dtype)
        self.detail = Conv(channels // 8, channels // 8, kernel=3, stride=1, padding=1, dtype=dtype)
        self.to_boundary = Linear(channels // 8, 1, dtype=dtype)
        self.to_mask = Linear(channels // 8, channels // 8, dtype=dtype)
        self.dim = dim

    def __call__(self, objects: jax.Array, features: SliceFeatures) -> tuple[jax.Array, jax.Array]:
        """Refine K objects.

        Args:
            objects: object features `[K, h, w, C]`.
            features: features of their slices, with leading axis 1 or K.

        Returns:
            The term `[K, 4h, 4w, C/8]` for the upscaled embedding, and boundary logits float32 `[K, 4h, 4w]`.
        """
        k, h, w, _ = objects.shape
        position = sine_position(h, w, self.dim).reshape(1, h * w, self.dim)
        queries = self.query_norm(gelu(self.query(objects))).reshape(k, h * w, self.dim)
        values = self.slice(features.embedding).reshape(-1, h * w, self.dim)
        values = jnp.broadcast_to(values, queries.shape)
        attended = self.attention(
            queries + position.astype(queries.dtype), values + position.astype(values.dtype), values
        )
        x = self.attention_norm(queries + attended).reshape(k, h, w, self.dim)
        x = gelu(self.up8_norm(self.up8(x) + features.stride8))
        x = gelu(self.detail(gelu(self.up4(x) + features.stride4)))
        return self.to_mask(x), self.to_boundary(x)[..., 0].astype(jnp.float32)
