"""The U-Net baseline on lung tumours (Task06) of the Decathlon, with the folds of `lung.py`.

sam2-3dmed prepare Task06_Lung.tar data/lung_unet --spacing 1.245,0.785,0.785
sam2-3dmed train unet_lung --out runs/unet_lung
"""

from decathlon import unet

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return unet("data/lung_unet", "lung_medsam", classes=(1,), spacing=(1.245, 0.785, 0.785), patch=(80, 192, 160))
