"""A small U-Net on phantom spleens, for a CPU.

    sam2-3dmed train unet_demo --data.path DATASET --out RUN

`DATASET` can be a dataset that `sam2-3dmed phantom` wrote. Training resamples and prepares it into the run's folder.
"""

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, TrainingConfig, UNetConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        model=UNetConfig(patch=(32, 48, 48), spacing=(6.0, 6.0, 6.0), features=8, max_features=64, blocks=(1, 2, 2, 2)),
        data=DataConfig(classes=(1,)),
        training=TrainingConfig(steps=400, batch_size=2, learning_rate=2e-3, images_every=0),
    )
