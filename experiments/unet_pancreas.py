"""The U-Net baseline on the pancreas and its tumours (Task07) of the Decathlon, with the folds of `pancreas.py`.

sam2-3dmed prepare Task07_Pancreas.tar data/pancreas_unet --spacing 2.5,0.8,0.8
sam2-3dmed train unet_pancreas --out runs/unet_pancreas
"""

from decathlon import unet

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return unet("data/pancreas_unet", "soft_tissue", classes=(1, 2), spacing=(2.5, 0.8, 0.8), patch=(40, 224, 224))
