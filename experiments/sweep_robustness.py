"""The cost of a misplaced, noisy, scarce or exchanged prompt: an exploratory sweep on a run's held-out cases.

    sam2-3dmed sweep robustness --out DIR --checkpoints RUN/final --data DATASET

To combine several runs of one model, give a path such as `runs/fold{fold}_seed{seed}/final` with
`--folds 0 1 2 --seeds 0 1`.
"""

from sam2_3dmed_jax.config import SweepSpec


def get_spec() -> SweepSpec:
    """Vary one factor at a time, for each kind of prompt, with and without BD."""
    return SweepSpec(
        checkpoints=("runs/demo/final",),
        data="data/phantom",
        prompt=("point", "box", "mask"),
        placement=("centre", "random"),
        noise_mm=(0.0, 2.0, 5.0, 10.0),
        misplacement_mm=(0.0, 2.0, 5.0, 10.0),
        neighbour=(False, True),
        prompt_of=("own", "other"),
        prompted_slices=(1, 2, 3, 5),
        order=("sequential", "independent"),
        bd=(True, False),
        threshold=(0.0, -2.0, -1.0, 1.0, 2.0),
        design="one-at-a-time",
        crossed=("prompt", "bd"),
    )
