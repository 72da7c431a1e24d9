"""Mask decoder (`sam/mask_decoder.py`, `sam/transformer.py`): a two-way transformer and four mask candidates.

Choosing one candidate (`select_mask`) is separate from predicting them, because training uses all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.sam2.attention import Attention
from sam2_3dmed_jax.sam2.layers import MLP, ConvTranspose2x2, Linear, gelu, layer_norm, parameter, precision_of

MASK_TOKENS = 4  # token 0: the single mask; 1 to 3: the multimask candidates
STABILITY_DELTA, STABILITY_THRESHOLD = 0.05, 0.98


class MaskCandidates(NamedTuple):
    """The decoder's predictions for K objects, before one candidate is chosen and gated by the object score.

    There are n = 4 candidates, or only the single mask in a model without multimask.
    """

    logits: jax.Array  # float32 [K, n, S/4, S/4]
    ious: jax.Array  # float32 [K, n], in [0, 1]
    tokens: jax.Array  # [K, n, C]
    object_score_logits: jax.Array  # float32 [K]
    boundary_logits: jax.Array | None = None  # float32 [K, S/4, S/4], if a boundary branch refined the masks


# Maps object features `[K, h, w, C]` after the transformer to a term that is added to the upscaled embedding
# `[K, 4h, 4w, C/8]`, and to boundary logits.
Refine = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class TwoWayAttentionBlock(nnx.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens."""

    def __init__(self, config: Sam2Config, *, first: bool, dtype: DTypeLike):
        c, heads = config.d_model, config.decoder_heads
        self.self_attn = Attention(c, heads, dtype=dtype)
        self.cross_attn_token_to_image = Attention(c, heads, downsample=2, dtype=dtype)
        self.cross_attn_image_to_token = Attention(c, heads, downsample=2, dtype=dtype)
        self.mlp = MLP((c, config.decoder_mlp_dim, c), dtype=dtype)
        self.norm1, self.norm2, self.norm3, self.norm4 = (layer_norm(c, eps=1e-5, dtype=dtype) for _ in range(4))
        self.skip_first_layer_pe = first  # upstream's name; the first block's self-attention uses no position

    def __call__(
        self, queries: jax.Array, keys: jax.Array, query_pe: jax.Array, key_pe: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Update tokens `[K, T, C]` and image `[K, N, C]`; `valid` is bool `[K, T]`."""
        if self.skip_first_layer_pe:
            queries = self.self_attn(queries, queries, queries, valid)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries, valid)
        queries = self.norm1(queries)
        queries = queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys)
        queries = self.norm2(queries)
        queries = self.norm3(queries + self.mlp(queries))
        keys = keys + self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries, valid)
        return queries, self.norm4(keys)


class TwoWayTransformer(nnx.Module):
    """Two blocks and a final attention from tokens to image."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        c = config.d_model
        self.layers = nnx.List([TwoWayAttentionBlock(config, first=i == 0, dtype=dtype) for i in range(2)])
        self.final_attn_token_to_image = Attention(c, config.decoder_heads, downsample=2, dtype=dtype)
        self.norm_final_attn = layer_norm(c, eps=1e-5, dtype=dtype)

    def __call__(
        self, image: jax.Array, image_pe: jax.Array, tokens: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the updated tokens and image from `image [K, N, C]` and `tokens [K, T, C]`."""
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe, valid)
        attended = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + attended), keys


class MaskDecoder(nnx.Module):
    """Predicts mask candidates, their IoUs and an object score (whether the object is on the slice)."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike):
        c = config.d_model
        self.transformer = TwoWayTransformer(config, dtype=dtype)
        self.iou_token = parameter(1, c)
        self.mask_tokens = parameter(MASK_TOKENS, c)
        self.obj_score_token = parameter(1, c)
        self.output_upscaling: nnx.List[Any] = nnx.List(
            [
                ConvTranspose2x2(c, c // 4, dtype=dtype),
                layer_norm(c // 4, eps=1e-6, dtype=dtype),
                gelu,
                ConvTranspose2x2(c // 4, c // 8, dtype=dtype),
            ]
        )
        self.conv_s0 = Linear(c, c // 8, dtype=dtype)
        self.conv_s1 = Linear(c, c // 4, dtype=dtype)
        self.output_hypernetworks_mlps = nnx.List([MLP((c, c, c, c // 8), dtype=dtype) for _ in range(MASK_TOKENS)])
        self.iou_prediction_head = MLP((c, c, c, MASK_TOKENS), dtype=dtype)
        self.pred_obj_score_head = MLP((c, c, c, 1), dtype=dtype)
        self.num_candidates = MASK_TOKENS if config.multimask else 1
        self.dtype = dtype

    def __call__(
        self,
        image: jax.Array,
        image_pe: jax.Array,
        sparse: jax.Array,
        sparse_valid: jax.Array,
        dense: jax.Array,
        stride4: jax.Array,
        stride8: jax.Array,
        refine: Refine | None = None,
    ) -> MaskCandidates:
        """Decode K objects on one slice each.

        Args:
            image: conditioned features `[K, h, w, C]`.
            image_pe: position encoding of the feature cells, `[h, w, C]`.
            sparse: prompt tokens `[K, T, C]`.
            sparse_valid: bool `[K, T]`; False for padding tokens.
            dense: dense prompt embedding, broadcastable to `[K, h, w, C]`.
            stride4: features `[1 or K, 4h, 4w, C/8]` after `conv_s0`.
            stride8: features `[1 or K, 2h, 2w, C/4]` after `conv_s1`.
            refine: boundary branch whose result is added to the upscaled embedding.
        """
        k, h, w, c = image.shape
        output_tokens = jnp.concatenate([self.obj_score_token[...], self.iou_token[...], self.mask_tokens[...]])
        count = output_tokens.shape[0]
        tokens = jnp.concatenate([jnp.broadcast_to(output_tokens, (k, count, c)), sparse], axis=1).astype(self.dtype)
        valid = jnp.concatenate([jnp.ones((k, count), bool), sparse_valid], axis=1)
        src = (image + dense).astype(self.dtype).reshape(k, h * w, c)
        hs, src = self.transformer(src, image_pe.astype(self.dtype).reshape(1, h * w, c), tokens, valid)
        n = self.num_candidates
        object_score_token, iou_token, mask_tokens = hs[:, 0], hs[:, 1], hs[:, 2 : 2 + n]

        src = src.reshape(k, h, w, c)
        to_stride8, norm, activation, to_stride4 = self.output_upscaling
        upscaled = activation(norm(to_stride8(src) + stride8))
        upscaled = activation(to_stride4(upscaled) + stride4)
        boundary_logits = None
        if refine is not None:
            refinement, boundary_logits = refine(src)
            upscaled = upscaled + refinement.astype(upscaled.dtype)
        hyper = jnp.stack([self.output_hypernetworks_mlps[i](mask_tokens[:, i]) for i in range(n)], axis=1)
        logits = jnp.einsum(
            "ktc,khwc->kthw", hyper, upscaled, precision=precision_of(self.dtype), preferred_element_type=jnp.float32
        )
        return MaskCandidates(
            logits=logits,
            ious=jax.nn.sigmoid(self.iou_prediction_head(iou_token)[:, :n].astype(jnp.float32)),
            tokens=mask_tokens,
            object_score_logits=self.pred_obj_score_head(object_score_token)[:, 0].astype(jnp.float32),
            boundary_logits=boundary_logits,
        )


def select_mask(
    candidates: MaskCandidates, multimask: jax.Array, by_stability: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Choose one candidate per object.

    Where `multimask [K]` is True, this is the best of candidates 1 to 3 by predicted IoU; otherwise it is candidate 0.
    With `by_stability` (upstream's `dynamic_multimask_via_stability`), the best of candidates 1 to 3 also replaces an
    unstable candidate 0.

    Returns:
        Ungated logits float32 `[K, S/4, S/4]`, their predicted IoU `[K]`, and the token `[K, C]` for the pointer.
    """
    if candidates.ious.shape[1] == 1:
        return candidates.logits[:, 0], candidates.ious[:, 0], candidates.tokens[:, 0]
    best = 1 + jnp.argmax(candidates.ious[:, 1:], axis=-1)
    chosen = jnp.where(multimask, best, 0)
    token = jnp.take_along_axis(candidates.tokens, chosen[:, None, None], axis=1)[:, 0]
    if by_stability:
        single = candidates.logits[:, 0]
        inner = (single > STABILITY_DELTA).sum((1, 2))
        outer = (single > -STABILITY_DELTA).sum((1, 2))
        stability = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0)
        chosen = jnp.where(multimask | (stability < STABILITY_THRESHOLD), best, 0)
    logits = jnp.take_along_axis(candidates.logits, chosen[:, None, None, None], axis=1)[:, 0]
    return logits, jnp.take_along_axis(candidates.ious, chosen[:, None], axis=1)[:, 0], token
