"""SAM 2 (`sam2_base.py`) as four steps per slice: encode image, condition on memory, decode mask, encode memory.

Each step is a pure function of the module's weights. Callers propagate from slice to slice (`inference/`,
`training/unroll.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sam2_3dmed_jax.config import Remat, Sam2Config
from sam2_3dmed_jax.sam2.image_encoder import ImageEncoder
from sam2_3dmed_jax.sam2.layers import MLP, Conv, Linear, add_bias, add_broadcast, parameter, resize_masks
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates, MaskDecoder, Refine, select_mask
from sam2_3dmed_jax.sam2.memory_attention import MemoryAttention, MemoryTokens
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank, gather_memory_tokens
from sam2_3dmed_jax.sam2.memory_encoder import MemoryEncoder
from sam2_3dmed_jax.sam2.memory_selection import memory_confidence, memory_rule
from sam2_3dmed_jax.sam2.prompt_encoder import PromptEncoder, PromptTokens, no_prompts

NO_OBJECT_LOGIT = -1024.0  # mask logits of an object that is not on the slice
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # from mask probabilities to the input of the memory encoder


class SliceFeatures(NamedTuple):
    """Image features of B slices, after `conv_s0` and `conv_s1`."""

    embedding: jax.Array  # [B, h, w, C], stride 16
    stride8: jax.Array  # [B, 2h, 2w, C/4]
    stride4: jax.Array  # [B, 4h, 4w, C/8]


class SliceOutput(NamedTuple):
    """The decoder's result for K objects on one slice each."""

    mask_logits: jax.Array  # float32 [K, S/4, S/4]; NO_OBJECT_LOGIT if the object is not on the slice
    object_score_logits: jax.Array  # float32 [K]
    predicted_iou: jax.Array  # float32 [K], in [0, 1], of the mask before the object score gates it
    pointer: jax.Array  # [K, C]
    candidates: MaskCandidates  # before the object score gates them


class SAM2(nnx.Module):
    """SAM 2 or 2.1. Attribute names follow the official checkpoints."""

    info: Any  # `model.checkpoint.CheckpointInfo`, set by the functions that build or load a model

    def __init__(self, config: Sam2Config):
        dtype = jnp.dtype(config.compute_dtype)
        c = config.d_model
        self.image_encoder = ImageEncoder(config, dtype=dtype)
        self.memory_attention = MemoryAttention(config, dtype=dtype)
        self.memory_encoder = MemoryEncoder(config, dtype=dtype)
        self.sam_prompt_encoder = PromptEncoder(config, dtype=dtype)
        self.sam_mask_decoder = MaskDecoder(config, dtype=dtype)
        self.obj_ptr_proj = MLP((c, c, c, c), dtype=dtype)
        self.obj_ptr_tpos_proj = Linear(c, config.mem_dim, dtype=jnp.float32) if config.tpos_enc_in_obj_ptrs else None
        self.mask_downsample = Conv(1, 1, kernel=4, stride=4, padding=0, dtype=dtype)
        self.maskmem_tpos_enc = parameter(config.num_maskmem, config.mem_dim)
        self.no_mem_embed = parameter(c)
        self.no_mem_pos_enc = parameter(c)  # in every official checkpoint, but never used
        self.no_obj_ptr = parameter(c)
        self.no_obj_embed_spatial = parameter(config.mem_dim) if config.no_obj_embed_spatial else None
        self.config = config

    # Step 1: encode the image

    def encode_image(self, images: jax.Array, remat_policy: Remat = "none") -> SliceFeatures:
        """Encode normalised slices `[B, S, S, 3]`; `remat_policy` applies to each block of the trunk."""
        decoder = self.sam_mask_decoder
        stride4, stride8, embedding = self.image_encoder(images, decoder.conv_s0, decoder.conv_s1, remat_policy)
        return SliceFeatures(embedding, stride8, stride4)

    # Step 2: condition on memory

    def without_memory(self, embedding: jax.Array) -> jax.Array:
        """Return the features `[K, h, w, C]` that a first prompted slice is decoded from: plus `no_mem_embed`."""
        return add_bias(embedding, self.no_mem_embed[...])

    def memory_tokens(
        self, bank: MemoryBank, index: jax.Array, direction: jax.Array, depth: jax.Array | int
    ) -> MemoryTokens:
        """Return the tokens that slice `index [K]` of a volume attends to.

        Args:
            bank: memories of K objects.
            index: int32 `[K]`, the slice to segment.
            direction: int32 `[K]`, direction of propagation, +1 or -1.
            depth: number of slices of the volume.
        """
        temporal_encoding = self.maskmem_tpos_enc[...]
        return gather_memory_tokens(
            bank, index, direction, depth, self.config, temporal_encoding, self.obj_ptr_tpos_proj
        )

    def condition_on_memory(self, embedding: jax.Array, memory: MemoryTokens) -> jax.Array:
        """Condition `embedding [B, h, w, C]` on each object's memory; returns `[K, h, w, C]`.

        The K / B objects of one slice are consecutive rows of `memory`.
        """
        return self.memory_attention(embedding, memory)

    # Step 3: decode a mask

    def candidates(self, conditioned: jax.Array, features: SliceFeatures, prompts: PromptTokens) -> MaskCandidates:
        """Return all mask candidates of K objects; `conditioned [K, h, w, C]`, `features` with leading axis 1 or K."""
        return self.decode_candidates(conditioned, features, prompts, None)

    def decode_candidates(
        self, conditioned: jax.Array, features: SliceFeatures, prompts: PromptTokens, refine: Refine | None
    ) -> MaskCandidates:
        """Embed the prompts and run the mask decoder; `refine` optionally adds to its upscaled embedding."""
        encoder = self.sam_prompt_encoder
        return self.sam_mask_decoder(
            conditioned,
            encoder.image_position_encoding(*conditioned.shape[1:3]),
            encoder.embed_points(prompts.coords, prompts.labels),
            prompts.valid,
            encoder.dense_embedding(prompts),
            features.stride4,
            features.stride8,
            refine,
        )

    def decode(
        self, conditioned: jax.Array, features: SliceFeatures, prompts: PromptTokens, *, by_stability: bool = False
    ) -> SliceOutput:
        """Choose one mask per object, gate it by the object score, and compute the object pointer."""
        candidates = self.candidates(conditioned, features, prompts)
        logits, predicted_iou, token = select_mask(candidates, prompts.multimask, by_stability)
        present = candidates.object_score_logits > 0
        return SliceOutput(
            mask_logits=jnp.where(present[:, None, None], logits, NO_OBJECT_LOGIT),
            object_score_logits=candidates.object_score_logits,
            predicted_iou=predicted_iou,
            pointer=self._pointer(self.obj_ptr_proj(token), present),
            candidates=candidates,
        )

    def use_mask_as_output(self, features: SliceFeatures, masks: jax.Array) -> SliceOutput:
        """Return mask prompts `[K, S, S]` in {0, 1} as the output (`_use_mask_as_output`), as logits at S/4.

        An empty mask means that the object is not on the slice. `features` have leading axis K.
        """
        k, size = masks.shape[0], masks.shape[-1]
        prompts = no_prompts(k)._replace(
            multimask=jnp.zeros(k, bool),
            mask=self.mask_downsample(masks[..., None])[..., 0].astype(jnp.float32),
            has_mask=jnp.ones(k, bool),
        )
        decoded = self.decode(features.embedding, features, prompts)
        present = (masks > 0).any((1, 2))
        return SliceOutput(
            mask_logits=resize_masks(masks * MASK_SCALE + MASK_BIAS, size // 4),
            object_score_logits=jnp.where(present, MASK_SCALE + MASK_BIAS, MASK_BIAS),
            predicted_iou=jnp.ones(k, jnp.float32),  # as upstream: the mask is the prompt itself
            pointer=self._pointer(decoded.pointer, present),
            candidates=decoded.candidates,
        )

    def _pointer(self, pointer: jax.Array, present: jax.Array) -> jax.Array:
        return jnp.where(present[:, None], pointer, self.no_obj_ptr[...].astype(pointer.dtype))

    # Step 4: encode a memory

    def encode_memory(
        self, embedding: jax.Array, mask_logits: jax.Array, object_score_logits: jax.Array, *, binarise: bool = False
    ) -> jax.Array:
        """Encode masks `[K, S/4, S/4]` and unconditioned features `[B, h, w, C]` as memories `[K, N, mem_dim]`.

        `binarise` is upstream's `binarize_mask_from_pts_for_mem_enc`, for prompted slices only.
        """
        masks = resize_masks(mask_logits, self.config.image_size)
        masks = (masks > 0).astype(masks.dtype) if binarise else jax.nn.sigmoid(masks)
        memory = self.memory_encoder(embedding, masks * MASK_SCALE + MASK_BIAS)
        if self.no_obj_embed_spatial is not None:
            absent = (object_score_logits <= 0)[:, None, None, None]
            memory = add_broadcast(memory, jnp.where(absent, self.no_obj_embed_spatial[...], 0.0))
        memory = memory.reshape(memory.shape[0], -1, memory.shape[-1])
        if self.config.store_memory_bfloat16:
            memory = memory.astype(jnp.bfloat16).astype(memory.dtype)
        return memory

    def memory_confidence(self, predicted_iou: jax.Array, object_score_logits: jax.Array) -> jax.Array | None:
        """Return the confidence `[K]` that comes with a memory; None if the model's rule does not rank memories."""
        ranked = memory_rule(self.config.memory_selection).ranked
        return memory_confidence(predicted_iou, object_score_logits) if ranked else None
