"""Prompt encoder (`sam/prompt_encoder.py`): points, boxes and dense masks become tokens and a dense embedding.

The number of tokens is static; padding tokens are masked out of the two-way transformer. (A token with label -1 is not
padding: it is SAM's "not a point" and changes the logits.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.layers import Conv, Linear, gelu, layer_norm, parameter
from sam2_3dmed_jax.sam2.position_encoding import PositionEmbeddingRandom

NOT_A_POINT, NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 0, 1, 2, 3


class PromptTokens(NamedTuple):
    """The prompts of K objects on one slice as T tokens each, some of them padding.

    A prompted object has its box corners (labels 2, 3), its points (0, 1) and one `NOT_A_POINT`; an object without
    prompts has two `NOT_A_POINT` tokens, exactly as upstream.
    """

    coords: jax.Array  # float32 [K, T, 2]: (x, y) in pixels of the S x S slice
    labels: jax.Array  # int32 [K, T]
    valid: jax.Array  # bool [K, T]: False for padding
    multimask: jax.Array  # bool [K]: choose one of the three multimask candidates
    mask: jax.Array | None = None  # float32 [K, S/4, S/4]: previous logits, as a dense prompt
    has_mask: jax.Array | None = None  # bool [K]


def no_prompts(objects: int, tokens: int = 2) -> PromptTokens:
    """Return the tokens of slices without prompts: two `NOT_A_POINT` tokens per object, padded to `tokens` tokens."""
    return PromptTokens(
        coords=jnp.zeros((objects, tokens, 2)),
        labels=jnp.full((objects, tokens), NOT_A_POINT, jnp.int32),
        valid=jnp.broadcast_to(jnp.arange(tokens) < 2, (objects, tokens)),
        multimask=jnp.ones(objects, bool),
    )


class PromptEncoder(nnx.Module):
    """Embeds prompts for the mask decoder."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        c = config.d_model
        self.pe_layer = PositionEmbeddingRandom(c)
        self.point_embeddings = nnx.List([parameter(c) for _ in range(4)])
        self.not_a_point_embed = parameter(c)
        self.no_mask_embed = parameter(c)
        self.mask_downscaling: nnx.List[Any] = nnx.List(
            [
                Conv(1, 4, kernel=2, stride=2, padding=0, dtype=dtype),
                layer_norm(4, eps=1e-6, dtype=dtype),
                gelu,
                Conv(4, 16, kernel=2, stride=2, padding=0, dtype=dtype),
                layer_norm(16, eps=1e-6, dtype=dtype),
                gelu,
                Linear(16, c, dtype=dtype),
            ]
        )
        self.image_size = config.image_size

    def embed_points(self, coords: jax.Array, labels: jax.Array) -> jax.Array:
        """Embed `coords [K, T, 2]` pixels with `labels [K, T]`; returns float32 `[K, T, C]`."""
        encoded = self.pe_layer.encode((coords + 0.5) / self.image_size)  # coordinates of pixel centres
        kinds = jnp.stack([embedding[...] for embedding in self.point_embeddings])
        embedded = encoded + kinds[jnp.maximum(labels, 0)]
        return jnp.where((labels == NOT_A_POINT)[..., None], self.not_a_point_embed[...], embedded)

    def embed_masks(self, masks: jax.Array) -> jax.Array:
        """Embed `masks [K, S/4, S/4]` (logits); returns `[K, S/16, S/16, C]`."""
        x = masks[..., None]
        for layer in self.mask_downscaling:
            x = layer(x)
        return x

    def dense_embedding(self, prompts: PromptTokens) -> jax.Array:
        """Return the dense embedding `[K, h, w, C]`, or `[1, 1, 1, C]` if no object has a dense prompt."""
        no_mask = self.no_mask_embed[...][None, None, None, :]
        if prompts.mask is None or prompts.has_mask is None:
            return no_mask
        return jnp.where(prompts.has_mask[:, None, None, None], self.embed_masks(prompts.mask), no_mask)

    def image_position_encoding(self, h: int, w: int) -> jax.Array:
        """Return the position encoding of the feature cells (`get_dense_pe`), float32 `[h, w, C]`."""
        return self.pe_layer.grid(h, w)
