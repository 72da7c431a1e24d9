"""The experiment of the demo, to train it yourself.

sam2-3dmed train demo --data.path DATASET --out RUN
"""

from sam2_3dmed_jax.commands.demo import demo_config
from sam2_3dmed_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """Return the nano model on phantom spleens."""
    return demo_config("")
