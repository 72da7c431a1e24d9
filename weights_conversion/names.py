"""Table of the names of every parameter in the native layout, in Meta's layout and in transformers' layout.

In a pattern, `#` matches a number and `(a|b)` one of several words; the matches are inserted in the same order into the
patterns of the other layouts. Meta's names equal the native ones up to the leaves, except where a row gives another
pattern. Upstream: `sam2/modeling` of Meta, `models/sam2_video` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from weights_conversion.transforms import (
    CONV,
    DEPTHWISE,
    IMAGE,
    LINEAR,
    POINTWISE,
    ROW,
    SAME,
    TOKEN,
    TOKENS,
    UPSCALE,
    Transform,
)


@dataclass(frozen=True)
class Leaf:
    """One tensor of a row: the endings of its native and foreign names, and its change of axes."""

    native: str
    foreign: str
    transform: Transform


def _layer(kernel: Transform) -> tuple[Leaf, ...]:
    return (Leaf(".kernel", ".weight", kernel), Leaf(".bias", ".bias", SAME))


DENSE, CONV1X1, CONV2D, CONV_DW, CONV_UP = map(_layer, (LINEAR, POINTWISE, CONV, DEPTHWISE, UPSCALE))
NORM = (Leaf(".scale", ".weight", SAME), Leaf(".bias", ".bias", SAME))
EMBEDDING = (Leaf("", ".weight", SAME),)
EMBEDDING_ROW = (Leaf("", ".weight", ROW),)


def _plain(transform: Transform) -> tuple[Leaf, ...]:
    return (Leaf("", "", transform),)


@dataclass(frozen=True)
class Row:
    """One row of the table: a pattern per layout, and the leaves below it.

    Several transformers names are copies of the same tensor. A name that ends in `[#]` is a tensor that stacks several
    parameters; `#` is the row.
    """

    native: str
    transformers: str | tuple[str, ...]
    leaves: tuple[Leaf, ...]
    meta: str | None = None  # None: equal to native


# The layers 0, 1, 2 of an MLP are proj_in, layers.0, proj_out in transformers.
def _mlp(native: str, transformers: str, names: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(Row(f"{native}.layers.{i}", f"{transformers}.{name}", DENSE) for i, name in enumerate(names))


TWO, THREE = ("proj_in", "proj_out"), ("proj_in", "layers.0", "proj_out")
QKV = "(q_proj|k_proj|v_proj)"

TRUNK = (
    Row("image_encoder.trunk.pos_embed", "vision_encoder.backbone.pos_embed", _plain(IMAGE)),
    Row("image_encoder.trunk.pos_embed_window", "vision_encoder.backbone.pos_embed_window", _plain(IMAGE)),
    Row("image_encoder.trunk.patch_embed.proj", "vision_encoder.backbone.patch_embed.projection", CONV2D),
    Row("image_encoder.trunk.blocks.#.norm#", "vision_encoder.backbone.blocks.#.layer_norm#", NORM),
    Row("image_encoder.trunk.blocks.#.attn.(qkv|proj)", "vision_encoder.backbone.blocks.#.attn.(qkv|proj)", DENSE),
    Row("image_encoder.trunk.blocks.#.proj", "vision_encoder.backbone.blocks.#.proj", DENSE),
    *_mlp("image_encoder.trunk.blocks.#.mlp", "vision_encoder.backbone.blocks.#.mlp", TWO),
)

NECK = (Row("image_encoder.neck.convs.#", "vision_encoder.neck.convs.#", CONV1X1, "image_encoder.neck.convs.#.conv"),)

MEMORY_ATTENTION = (
    Row(
        f"memory_attention.layers.#.(self_attn|cross_attn_image).{QKV}",
        f"memory_attention.layers.#.(self_attn|cross_attn_image).{QKV}",
        DENSE,
    ),
    Row(
        "memory_attention.layers.#.(self_attn|cross_attn_image).out_proj",
        "memory_attention.layers.#.(self_attn|cross_attn_image).o_proj",
        DENSE,
    ),
    Row("memory_attention.layers.#.linear#", "memory_attention.layers.#.linear#", DENSE),
    Row("memory_attention.layers.#.norm#", "memory_attention.layers.#.layer_norm#", NORM),
    Row("memory_attention.norm", "memory_attention.layer_norm", NORM),
)

MEMORY_ENCODER = (
    # Each stage of Meta's downsampler has three modules: convolution, norm and activation.
    *(
        row
        for i in range(4)
        for row in (
            Row(
                f"memory_encoder.mask_downsampler.encoder.{3 * i}",
                f"memory_encoder.mask_downsampler.layers.{i}.conv",
                CONV2D,
            ),
            Row(
                f"memory_encoder.mask_downsampler.encoder.{3 * i + 1}",
                f"memory_encoder.mask_downsampler.layers.{i}.layer_norm",
                NORM,
            ),
        )
    ),
    Row("memory_encoder.mask_downsampler.encoder.12", "memory_encoder.mask_downsampler.final_conv", CONV1X1),
    Row("memory_encoder.pix_feat_proj", "memory_encoder.feature_projection", CONV1X1),
    Row("memory_encoder.fuser.layers.#.gamma", "memory_encoder.memory_fuser.layers.#.scale", _plain(SAME)),
    Row("memory_encoder.fuser.layers.#.dwconv", "memory_encoder.memory_fuser.layers.#.depthwise_conv", CONV_DW),
    Row("memory_encoder.fuser.layers.#.norm", "memory_encoder.memory_fuser.layers.#.layer_norm", NORM),
    Row("memory_encoder.fuser.layers.#.pwconv#", "memory_encoder.memory_fuser.layers.#.pointwise_conv#", DENSE),
    Row("memory_encoder.out_proj", "memory_encoder.projection", CONV1X1),
)

PROMPT_ENCODER = (
    Row(
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"),
        _plain(SAME),
    ),
    Row("sam_prompt_encoder.point_embeddings.#", "prompt_encoder.point_embed[#]", EMBEDDING_ROW),
    Row("sam_prompt_encoder.not_a_point_embed", "prompt_encoder.not_a_point_embed", EMBEDDING_ROW),
    Row("sam_prompt_encoder.no_mask_embed", "prompt_encoder.no_mask_embed", EMBEDDING_ROW),
    Row("sam_prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1", CONV2D),
    Row("sam_prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1", NORM),
    Row("sam_prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2", CONV2D),
    Row("sam_prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2", NORM),
    Row("sam_prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3", CONV1X1),
)

_CROSS = "(self_attn|cross_attn_token_to_image|cross_attn_image_to_token)"
MASK_DECODER = (
    Row(
        "sam_mask_decoder.(iou_token|mask_tokens|obj_score_token)",
        "mask_decoder.(iou_token|mask_tokens|obj_score_token)",
        EMBEDDING,
    ),
    Row(
        f"sam_mask_decoder.transformer.layers.#.{_CROSS}.{QKV}",
        f"mask_decoder.transformer.layers.#.{_CROSS}.{QKV}",
        DENSE,
    ),
    Row(
        f"sam_mask_decoder.transformer.layers.#.{_CROSS}.out_proj",
        f"mask_decoder.transformer.layers.#.{_CROSS}.o_proj",
        DENSE,
    ),
    Row("sam_mask_decoder.transformer.layers.#.norm#", "mask_decoder.transformer.layers.#.layer_norm#", NORM),
    *_mlp("sam_mask_decoder.transformer.layers.#.mlp", "mask_decoder.transformer.layers.#.mlp", TWO),
    Row(
        f"sam_mask_decoder.transformer.final_attn_token_to_image.{QKV}",
        f"mask_decoder.transformer.final_attn_token_to_image.{QKV}",
        DENSE,
    ),
    Row(
        "sam_mask_decoder.transformer.final_attn_token_to_image.out_proj",
        "mask_decoder.transformer.final_attn_token_to_image.o_proj",
        DENSE,
    ),
    Row("sam_mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn", NORM),
    Row("sam_mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1", CONV_UP),
    Row("sam_mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm", NORM),
    Row("sam_mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2", CONV_UP),
    Row("sam_mask_decoder.conv_s#", "mask_decoder.conv_s#", CONV1X1),
    *_mlp("sam_mask_decoder.output_hypernetworks_mlps.#", "mask_decoder.output_hypernetworks_mlps.#", THREE),
    *_mlp("sam_mask_decoder.iou_prediction_head", "mask_decoder.iou_prediction_head", THREE),
    *_mlp("sam_mask_decoder.pred_obj_score_head", "mask_decoder.pred_obj_score_head", THREE),
)

MEMORY_BANK = (
    Row("maskmem_tpos_enc", "memory_temporal_positional_encoding", _plain(TOKENS)),
    Row("no_mem_embed", "no_memory_embedding", _plain(TOKEN)),
    Row("no_mem_pos_enc", "no_memory_positional_encoding", _plain(TOKEN)),
    Row("no_obj_ptr", "no_object_pointer", _plain(ROW)),
    Row("mask_downsample", "mask_downsample", CONV2D),
    *_mlp("obj_ptr_proj", "object_pointer_proj", THREE),
    # SAM 2.1 only
    Row("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter", _plain(ROW)),
    Row("obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer", DENSE),
)

ROWS = (*TRUNK, *NECK, *MEMORY_ATTENTION, *MEMORY_ENCODER, *PROMPT_ENCODER, *MASK_DECODER, *MEMORY_BANK)

# Parameters that foreign layouts cannot store: SRPP and BD of a fine-tuned SAM2-3dMed.
EXTRA = ("slice_position.", "boundary.")
