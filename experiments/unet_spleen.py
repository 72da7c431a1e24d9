"""The U-Net baseline on spleens (Task09) of the Decathlon, with the folds of `spleen.py`.

sam2-3dmed prepare Task09_Spleen.tar data/spleen_unet --spacing 5,0.79,0.79
sam2-3dmed train unet_spleen --out runs/unet_spleen
"""

from decathlon import unet

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return unet("data/spleen_unet", "soft_tissue", classes=(1,), spacing=(5.0, 0.79, 0.79), patch=(32, 192, 192))
