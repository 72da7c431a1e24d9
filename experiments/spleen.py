"""SAM2-3dMed on spleens of the Decathlon (Task09): 41 CTs, with slices of typically 5 mm.

    sam2-3dmed prepare Task09_Spleen.tar data/spleen
    sam2-3dmed convert sam2.1_hiera_large.pt checkpoints/sam2.1_hiera_large
    sam2-3dmed train experiments/spleen.py --out runs/spleen

`--data.path` and `--model.init` give other places.
"""

from decathlon import ours

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return ours("data/spleen", window="soft_tissue", slice_mm=5.0)
