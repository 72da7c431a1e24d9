"""SAM2-3dMed on lung tumours of the Decathlon (Task06): 63 CTs, with slices of typically 1.245 mm.

The window is MedSAM's, in which a tumour can be distinguished from the adjacent mediastinum.

    sam2-3dmed prepare Task06_Lung.tar data/lung
    sam2-3dmed train lung --out runs/lung

The weights are downloaded by name. `--data.path` and `--model.init` choose other data and weights.
"""

from decathlon import ours

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return ours("data/lung", window="lung_medsam", slice_mm=1.245)
