"""What the experiments on the Medical Segmentation Decathlon share: the paper's settings, and where ours differ.

Paper: frozen encoder, D = 12, lambda_srpp 0.01, lambda_bd 0.1. It names neither backbone nor size, batch, steps or
optimizer; those are ours. The encoder is frozen, so it is the largest, at the 1024 pixels that it was trained at:
another size would ask of it what it never learned. On a small machine:
`--model.preset sam2.1_hiera_tiny --model.init checkpoints/sam2.1_hiera_tiny --training.batch_size 1`.
"""

from dataclasses import replace

from sam2_3dmed_jax.config import (
    BdConfig,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    PreprocessingConfig,
    SrppConfig,
    TrainingConfig,
    UNetConfig,
)

PRESET = "sam2.1_hiera_large"
SLICES = 12


def ours(data: str, window: str, slice_mm: float, steps: int = 4000) -> ExperimentConfig:
    """SRPP shared with the mask path, positions in mm.

    `slice_mm` is the task's typical slice spacing: positions are counted in it, so that lambda_srpp means on such a
    scan what it means in the paper.
    """
    return ExperimentConfig(
        model=ModelConfig(
            preset=PRESET,
            image_size=1024,
            slice_position=SrppConfig(unit="mm", scale=slice_mm, window=SLICES),
            compute_dtype="bfloat16",
            init=f"checkpoints/{PRESET}",
        ),
        data=DataConfig(
            path=data,
            slices=SLICES,
            inner_fraction=0.1,  # chooses best/
            preprocessing=PreprocessingConfig(window),
        ),
        training=TrainingConfig(
            steps=steps,
            batch_size=16,  # a clip a chip of v5e:4x4
            remat_slices="all",  # else the walk keeps the attention of twelve steps at 1024 pixels
            loss=LossConfig(srpp=0.01, bd=0.1),
        ),
    )


def unet(
    data: str,
    window: str,
    classes: tuple[int, ...],
    spacing: tuple[float, float, float],
    patch: tuple[int, int, int],
    steps: int = 16000,
) -> ExperimentConfig:
    """The native baseline that is no SAM, at the task's median spacing."""
    return ExperimentConfig(
        model=ModelConfig(kind="unet", unet=UNetConfig(patch=patch, spacing=spacing), compute_dtype="bfloat16"),
        data=DataConfig(
            path=data,
            classes=classes,
            inner_fraction=0.1,
            rotation=30.0,
            scaling=0.3,
            preprocessing=PreprocessingConfig(window),
        ),
        training=TrainingConfig(steps=steps, batch_size=16, learning_rate=1e-3, remat_trunk="all"),
    )


def paper(config: ExperimentConfig) -> ExperimentConfig:
    """To the letter: SRPP without a path to the mask, positions `j - i` in slices, BD divided by all pixels."""
    srpp = replace(config.model.slice_position, to_mask=False, unit="slice", scale=1.0)
    return config.replace(model=replace(config.model, slice_position=srpp, boundary=BdConfig(normaliser="paper")))
