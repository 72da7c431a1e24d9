"""A small U-Net on phantom spleens, for a CPU.

    sam2-3dmed train experiments/unet_demo.py --data.path DATASET --out RUN

`DATASET` may be that of `sam2-3dmed phantom`, which is then resampled and prepared into the run's folder.
"""

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig, UNetConfig


def get_config() -> ExperimentConfig:
    net = UNetConfig(patch=(32, 48, 48), spacing=(6.0, 6.0, 6.0), features=8, max_features=64, blocks=(1, 2, 2, 2))
    return ExperimentConfig(
        model=ModelConfig(kind="unet", unet=net),
        data=DataConfig(classes=(1,)),
        training=TrainingConfig(steps=400, batch_size=2, learning_rate=2e-3, images_every=0),
    )
