"""The experiment of `spleen.py` with SAM2-3dMed as in the paper."""

from decathlon import paper
from spleen import get_config as ours

from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return paper(ours())
