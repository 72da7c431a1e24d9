"""The effect of the memory selection: an exploratory sweep on a run's held-out cases, from one click per object.

sam2-3dmed sweep memory --out DIR --checkpoints RUN/final --data DATASET
"""

from sam2_3dmed_jax.config import SweepSpec


def get_spec() -> SweepSpec:
    """Compare the rules of memory selection; everything else is as in `evaluate`."""
    return SweepSpec(
        checkpoints=("runs/demo/final",),
        data="data/phantom",
        prompt=("point",),
        misplacement_mm=(0.0,),
        memory_selection=("recent", "confident", "self-sorting"),
        metrics="overlap",
    )
