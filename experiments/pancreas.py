"""SAM2-3dMed on the Decathlon's pancreas and its tumours (Task07): 281 CTs, slices of 2.5 mm typically.

Pancreas and tumour are an object each, and a clip is prompted for either.

    sam2-3dmed prepare Task07_Pancreas.tar data/pancreas
    sam2-3dmed convert sam2.1_hiera_large.pt checkpoints/sam2.1_hiera_large
    sam2-3dmed train experiments/pancreas.py --out runs/pancreas

`--data.path` and `--model.init` name other places.
"""

from decathlon import ours

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return ours("data/pancreas", window="soft_tissue", slice_mm=2.5, steps=12000)
