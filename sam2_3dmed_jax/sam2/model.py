"""SAM 2 as the four steps of a slice: encode the image, condition on memory, decode a mask, encode a memory.

After `sam2_base.py`. Each step is a pure function of the module's weights; walking over slices belongs to callers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sam2_3dmed_jax.config import Remat, Sam2Config
from sam2_3dmed_jax.sam2.image_encoder import ImageEncoder
from sam2_3dmed_jax.sam2.layers import MLP, Conv, Linear, parameter, resize_masks
from sam2_3dmed_jax.sam2.mask_decoder import MaskCandidates, MaskDecoder, Refine, select_mask
from sam2_3dmed_jax.sam2.memory_attention import MemoryAttention, MemoryTokens
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank, memory_tokens
from sam2_3dmed_jax.sam2.memory_encoder import MemoryEncoder
from sam2_3dmed_jax.sam2.prompt_encoder import PromptEncoder, Prompts, no_prompts

NO_OBJECT_LOGIT = -1024.0  # a mask's logits where the object score says "not here"
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # from probabilities to what the memory encoder sees


class SliceFeatures(NamedTuple):
    """What the image encoder leaves of B slices, after `conv_s0` and `conv_s1`."""

    embedding: jax.Array  # [B, h, w, C], stride 16
    stride8: jax.Array  # [B, 2h, 2w, C/4]
    stride4: jax.Array  # [B, 4h, 4w, C/8]


class SliceOutput(NamedTuple):
    """The result of K objects on one slice each."""

    mask_logits: jax.Array  # float32 [K, S/4, S/4]; NO_OBJECT_LOGIT where the object is not on the slice
    object_score_logits: jax.Array  # float32 [K]
    pointer: jax.Array  # [K, C]
    candidates: MaskCandidates  # ungated


class SAM2(nnx.Module):
    """SAM 2 or 2.1. Attribute names follow the official checkpoints."""

    info: Any  # what the model was made from; whoever builds or loads one says it

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
        self.no_mem_pos_enc = parameter(c)  # in every official file, used by none
        self.no_obj_ptr = parameter(c)
        self.no_obj_embed_spatial = parameter(config.mem_dim) if config.no_obj_embed_spatial else None
        self.config = config

    # Step 1

    def encode_image(self, images: jax.Array, remat: Remat = "none") -> SliceFeatures:
        """Encode normalised slices `[B, S, S, 3]`; `remat` is of each block of the trunk."""
        decoder = self.sam_mask_decoder
        stride4, stride8, embedding = self.image_encoder(images, (decoder.conv_s0, decoder.conv_s1), remat)
        return SliceFeatures(embedding, stride8, stride4)

    # Step 2

    def without_memory(self, embedding: jax.Array) -> jax.Array:
        """What a first prompted slice decodes from: `[K, h, w, C]` plus `no_mem_embed`."""
        return embedding + self.no_mem_embed[...].astype(embedding.dtype)

    def recall(self, bank: MemoryBank, index: jax.Array, direction: jax.Array, depth: jax.Array | int) -> MemoryTokens:
        """The memory tokens of slice `index [K]`, walked in `direction [K]`, of a volume with `depth` slices."""
        slot_position = self.maskmem_tpos_enc[...]
        return memory_tokens(bank, index, direction, depth, self.config, slot_position, self.obj_ptr_tpos_proj)

    def condition_on_memory(self, embedding: jax.Array, memory: MemoryTokens) -> jax.Array:
        """Condition `embedding [B, h, w, C]` on each object's memory: `[K, h, w, C]`, K / B neighbours a slice."""
        return self.memory_attention(embedding, memory)

    # Step 3

    def candidates(self, conditioned: jax.Array, features: SliceFeatures, prompts: Prompts) -> MaskCandidates:
        """All mask candidates of K objects: `conditioned [K, h, w, C]`, `features` with leading axis 1 or K."""
        return self.decode_candidates(conditioned, features, prompts, None)

    def decode_candidates(
        self, conditioned: jax.Array, features: SliceFeatures, prompts: Prompts, refine: Refine | None
    ) -> MaskCandidates:
        """Embed the prompts and run the mask decoder, with an optional refinement of its upscaled embedding."""
        encoder = self.sam_prompt_encoder
        return self.sam_mask_decoder(
            conditioned,
            encoder.image_position(*conditioned.shape[1:3]),
            encoder.embed_points(prompts.coords, prompts.labels),
            prompts.valid,
            encoder.dense(prompts),
            features.stride4,
            features.stride8,
            refine,
        )

    def decode(
        self, conditioned: jax.Array, features: SliceFeatures, prompts: Prompts, *, by_stability: bool = False
    ) -> SliceOutput:
        """Choose a mask an object, gate it by the object score, and make the object pointer."""
        candidates = self.candidates(conditioned, features, prompts)
        logits, _, token = select_mask(candidates, prompts.multimask, by_stability)
        present = candidates.object_score_logits > 0
        return SliceOutput(
            mask_logits=jnp.where(present[:, None, None], logits, NO_OBJECT_LOGIT),
            object_score_logits=candidates.object_score_logits,
            pointer=self._pointer(self.obj_ptr_proj(token), present),
            candidates=candidates,
        )

    def take_mask(self, features: SliceFeatures, masks: jax.Array) -> SliceOutput:
        """A mask prompt `[K, S, S]` in {0, 1} is the output itself; an empty one says "not on this slice".

        The mask goes through logits at S/4 (`_use_mask_as_output`). `features` have leading axis K.
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
            pointer=self._pointer(decoded.pointer, present),
            candidates=decoded.candidates,
        )

    def _pointer(self, pointer: jax.Array, present: jax.Array) -> jax.Array:
        return jnp.where(present[:, None], pointer, self.no_obj_ptr[...].astype(pointer.dtype))

    # Step 4

    def encode_memory(
        self, embedding: jax.Array, mask_logits: jax.Array, object_score_logits: jax.Array, *, binarise: bool = False
    ) -> jax.Array:
        """Encode masks `[K, S/4, S/4]` and unconditioned features `[B, h, w, C]` as memories `[K, N, mem_dim]`.

        `binarise` is the reference's `binarize_mask_from_pts_for_mem_enc`, for prompted slices only.
        """
        masks = resize_masks(mask_logits, self.config.image_size)
        masks = (masks > 0).astype(masks.dtype) if binarise else jax.nn.sigmoid(masks)
        memory = self.memory_encoder(embedding, masks * MASK_SCALE + MASK_BIAS)
        if self.no_obj_embed_spatial is not None:
            absent = (object_score_logits <= 0)[:, None, None, None]
            memory = memory + jnp.where(absent, self.no_obj_embed_spatial[...], 0.0).astype(memory.dtype)
        memory = memory.reshape(memory.shape[0], -1, memory.shape[-1])
        if self.config.store_memory_bfloat16:
            memory = memory.astype(jnp.bfloat16).astype(memory.dtype)
        return memory
