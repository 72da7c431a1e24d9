"""Shared settings of the experiments on the Medical Segmentation Decathlon: the paper's, and ours where they differ.

The paper freezes the encoder and uses D = 12, lambda_srpp = 0.01 and lambda_bd = 0.1. It names no backbone, image size,
batch size, number of steps or optimizer; ours are below. Because the encoder is frozen, we use the largest one, at the
1024 pixels that it was trained with. On a small machine, add these flags:
`--model.preset sam2.1_hiera_tiny --model.init sam2.1_hiera_tiny --training.batch_size 1`.
"""

from dataclasses import replace

from sam2_3dmed_jax.config import (
    AugmentationConfig,
    BdConfig,
    ClipConfig,
    CorrectionConfig,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    PreprocessingConfig,
    PromptConfig,
    SplitConfig,
    SrppConfig,
    TrainingConfig,
    UNetConfig,
)

PRESET = "sam2.1_hiera_large"
SLICES = 12


def ours(
    data: str,
    window: str,
    slice_mm: float,
    classes: tuple[int | str, ...] = (),
    objects: int = 1,
    steps: int = 4000,
) -> ExperimentConfig:
    """Return our variant of SAM2-3dMed: SRPP is shared with the mask path, and positions are in mm.

    Args:
        data: prepared folder.
        window: CT window, as `data.preprocessing.window`.
        slice_mm: the task's typical slice spacing, in mm. Positions are divided by it, so that lambda_srpp has the same
            weight on a typical scan as in the paper.
        classes: objects to segment, as `data.classes`; the ones that `evaluate` prompts.
        objects: K, objects of one clip, whose clicks compete.
        steps: training steps.
    """
    return ExperimentConfig(
        model=ModelConfig(
            preset=PRESET,
            image_size=1024,
            slice_position=SrppConfig(unit="mm", scale=slice_mm),
            compute_dtype="bfloat16",
            init=PRESET,
        ),
        data=DataConfig(
            path=data,
            classes=classes,
            slices=SLICES,
            # Half of the clips have their prompted slice inside the window of the slice context, as at inference.
            clips=ClipConfig(objects=objects, context_before_probability=0.5),
            # So that the model cannot ignore where its prompt is, and is trained as it is used: users prompt another
            # slice, give an earlier segmentation, and correct masks by clicks. The numbers are SAM 2's.
            prompts=PromptConfig(
                negative_point_probability=0.2,
                absent_object_probability=0.1,
                mask_prompt_probability=0.1,
                prompted_slices=2,
                corrections=CorrectionConfig(clicks=7, corrected_slices=1),
            ),
            split=SplitConfig(inner_fraction=0.1),  # for the choice of best/
            preprocessing=PreprocessingConfig(window),
        ),
        training=TrainingConfig(
            steps=steps,
            batch_size=16,  # one clip per chip of v5e:4x4
            remat_slices="all",  # otherwise the attention of twelve slices at 1024 pixels is stored for the gradient
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
    """Return the U-Net, our own baseline without prompts, at the task's median spacing.

    Args:
        data: folder that was prepared at `spacing`.
        window: CT window, as `data.preprocessing.window`.
        classes: label values to segment.
        spacing: (dz, dy, dx), in mm.
        patch: (D, H, W), in voxels.
        steps: training steps.
    """
    return ExperimentConfig(
        model=UNetConfig(patch=patch, spacing=spacing, compute_dtype="bfloat16"),
        data=DataConfig(
            path=data,
            classes=classes,
            split=SplitConfig(inner_fraction=0.1),
            augmentation=AugmentationConfig(rotation=30.0, scaling=0.3),
            preprocessing=PreprocessingConfig(window),
        ),
        training=TrainingConfig(steps=steps, batch_size=16, learning_rate=1e-3, remat_trunk="all"),
    )


def paper(config: ExperimentConfig) -> ExperimentConfig:
    """Return the paper's variant; docs/explanation/method.md has a table of the differences that remain.

    SRPP has no path to the mask, positions are in slices, and BD is divided by all pixels. L_seg is BCE + Dice, without
    SAM 2's losses of the predicted IoU and the object score. Clips are contiguous slices, prompted by the centre point.
    """
    assert isinstance(config.model, ModelConfig)
    srpp = replace(config.model.slice_position, to_mask=False, unit="slice", scale=1.0)
    clips = ClipConfig(max_stride=1, past_end_probability=0.0, absent_probability=0.0, context_before_probability=0.0)
    return config.replace(
        model=replace(config.model, slice_position=srpp, boundary=BdConfig(normaliser="paper")),
        data=replace(
            config.data, clips=clips, prompts=PromptConfig(box_prompt_probability=0.0, random_point_probability=0.0)
        ),
        training=replace(config.training, loss=replace(config.training.loss, iou=0.0, object_score=0.0)),
    )
