"""The `config.json` of a transformers `Sam2VideoModel` for a preset."""

from __future__ import annotations

from typing import Any

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.sam2.presets import preset_config


def transformers_config(model: ModelConfig) -> dict[str, Any]:
    """Return the configuration of a model. Other fields keep transformers' defaults, which equal SAM 2's.

    Raises:
        UserError: the preset does not exist, or the image size does not fit it.
    """
    config = preset_config(model.preset, model.image_size)
    trunk, size, width = config.trunk, config.image_size, config.d_model
    widths = [trunk.embed_dim * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": trunk.embed_dim,
        "num_attention_heads": trunk.num_heads,
        "image_size": [size, size],
        "blocks_per_stage": list(trunk.stages),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [trunk.num_heads * 2**stage for stage in range(4)],
        "window_size_per_stage": list(trunk.window_spec),
        "global_attention_blocks": list(trunk.global_att_blocks),
        "window_positional_embedding_background_size": list(trunk.pos_embed_size),
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[size // stride] * 2 for stride in (4, 8, 16)],
        "fpn_hidden_size": width,
    }
    return {
        "architectures": ["Sam2VideoModel"],
        "model_type": "sam2_video",
        "dtype": "float32",
        "image_size": size,
        "vision_config": vision,
        "prompt_encoder_config": {
            "model_type": "sam2_video_prompt_encoder",
            "hidden_size": width,
            "image_size": size,
        },
        "mask_decoder_config": {
            "model_type": "sam2_video_mask_decoder",
            "hidden_size": width,
            "mlp_dim": config.decoder_mlp_dim,
            "num_attention_heads": config.decoder_heads,
            "iou_head_hidden_dim": width,
        },
        "num_maskmem": config.num_maskmem,
        "max_object_pointers_in_encoder": config.max_obj_ptrs,
        "max_cond_frame_num": -1 if config.max_cond_slices is None else config.max_cond_slices,
        "multimask_output_in_sam": config.multimask,
        "enable_occlusion_spatial_embedding": config.no_obj_embed_spatial,
        "enable_temporal_pos_encoding_for_object_pointers": config.tpos_enc_in_obj_ptrs,
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": config.memory_attention_layers,
        "memory_attention_feed_forward_hidden_size": config.memory_attention_ff,
        "memory_attention_rope_feat_sizes": [size // 16, size // 16],
        "memory_encoder_hidden_size": width,
        "memory_encoder_output_channels": config.mem_dim,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 4 * width,
    }
