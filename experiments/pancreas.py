"""SAM2-3dMed on the pancreas and its tumours of the Decathlon (Task07): 281 CTs, with slices of typically 2.5 mm.

The pancreas with its tumour and the tumour alone are the objects, as `evaluate` prompts them. A clip that shows
both has a prompt for each.

    sam2-3dmed prepare Task07_Pancreas.tar data/pancreas
    sam2-3dmed train pancreas --out runs/pancreas

The weights are downloaded by name. `--data.path` and `--model.init` choose other data and weights.
"""

from decathlon import ours

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return ours("data/pancreas", window="soft_tissue", slice_mm=2.5, classes=("1+2", 2), objects=2, steps=12000)
