"""SAM2-3dMed on spleens of the Decathlon (Task09): 41 CTs, with slices of typically 5 mm.

    sam2-3dmed prepare Task09_Spleen.tar data/spleen
    sam2-3dmed train spleen --out runs/spleen

The weights are downloaded by name. `--data.path` and `--model.init` choose other data and weights.
"""

from decathlon import ours

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return ours("data/spleen", window="soft_tissue", slice_mm=5.0)
