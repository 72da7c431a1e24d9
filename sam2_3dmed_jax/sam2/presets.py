"""Presets: the eight official architectures by their official names, and `nano` for CPU, tests and the demo."""

from __future__ import annotations

from dataclasses import replace

from sam2_3dmed_jax.config import HieraConfig, Sam2Config
from sam2_3dmed_jax.errors import UserError

_TINY = HieraConfig()
_SMALL = HieraConfig(stages=(1, 2, 11, 2), global_att_blocks=(7, 10, 13))
_BASE_PLUS = HieraConfig(
    embed_dim=112, num_heads=2, stages=(2, 3, 16, 3), global_att_blocks=(12, 16, 20), pos_embed_size=(14, 14)
)
_LARGE = HieraConfig(
    embed_dim=144,
    num_heads=2,
    stages=(2, 6, 36, 4),
    global_att_blocks=(23, 33, 43),
    window_spec=(8, 4, 16, 8),
    pos_embed_size=(7, 7),
)
_NANO = HieraConfig(embed_dim=24, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_spec=(8, 4, 8, 4))

_TRUNKS = {"tiny": _TINY, "small": _SMALL, "base_plus": _BASE_PLUS, "large": _LARGE}

PRESETS: dict[str, Sam2Config] = {
    **{f"sam2.1_hiera_{name}": Sam2Config(trunk=trunk) for name, trunk in _TRUNKS.items()},
    **{
        f"sam2_hiera_{name}": Sam2Config(trunk=trunk, no_obj_embed_spatial=False, tpos_enc_in_obj_ptrs=False)
        for name, trunk in _TRUNKS.items()
    },
    "nano": Sam2Config(
        trunk=_NANO,
        image_size=128,
        d_model=64,
        mem_dim=16,
        memory_attention_layers=1,
        memory_attention_ff=128,
        decoder_heads=4,
        decoder_mlp_dim=128,
        # Learning to choose among three candidates takes long, too long for a small model trained from scratch.
        multimask=False,
    ),
}


def preset_config(preset: str, image_size: int | None = None) -> Sam2Config:
    """Return the architecture of a preset, optionally at another image size.

    Raises:
        UserError: the preset is unknown, or the size is not a multiple of 32 of at least 64.
    """
    if preset not in PRESETS:
        raise UserError(f"model.preset: '{preset}' does not exist; choose one of {', '.join(PRESETS)}")
    config = PRESETS[preset]
    if image_size is None:
        return config
    if image_size < 64 or image_size % 32:
        raise UserError(f"model.image_size: {image_size} is not a multiple of 32 of at least 64; give one, such as 512")
    return replace(config, image_size=image_size)
