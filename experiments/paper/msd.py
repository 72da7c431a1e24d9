"""The paper's tables on the Decathlon, from an official checkpoint: `experiments/{spleen,pancreas,lung}.py`, all runs.

    python -m experiments.paper.msd --out results

from the folder that holds `checkpoints/`, `data/` and the Decathlon's folders (see README.md). Start it on each machine
that shares the folder; each takes runs that nobody else has. `--others` adds rows of other methods' label maps.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro

from experiments.paper.programme import Programme
from experiments.paper.runner import Options, run
from experiments.paper.variants import Others, Task, changed, paper_variants
from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.errors import UserError

HERE = Path(__file__).resolve().parents[1]
TASKS: dict[str, tuple[str, str, float, str]] = {  # name: title, folder, slice in mm and tolerance of METHOD.md
    "spleen": ("Spleen (Task09)", "Task09_Spleen", 5.0, "3"),
    "pancreas": ("Pancreas and tumour (Task07)", "Task07_Pancreas", 2.5, "5"),
    "lung": ("Lung tumour (Task06)", "Task06_Lung", 1.245, "2"),
}
NOTES = (
    "Cross-validation on the training cases, nnU-Net's folds; the Decathlon's own test labels are withheld.",
    "A click removes the problem of detection: no row of the reference-prompted block is called better than one of the "
    "automatic block, and none is tested against it.",
)


@dataclass(frozen=True)
class Words(Options):
    """What to do, where, and from what."""

    out: str = "results"
    root: str = "."  # where checkpoints/, data/ and the Decathlon's folders are
    init: str = ""  # another checkpoint to start from, of `preset`; "": the experiments' own
    preset: str = ""  # of `init`
    all_seeds: int = 6  # of the two-by-two: Wilcoxon's test over as many can reach p < .05
    few_seeds: int = 3  # of the rest
    all_folds: int = 5
    others: tuple[
        str, ...
    ] = ()  # NAME=FOLDER/{task}/{fold}=TRAINED: a method's label maps; TRAINED: yes, no or unknown


def programme(words: Words) -> Programme:
    """All runs.

    Raises:
        UserError: `others` that are not named as they must be.
    """
    return Programme(
        title="SAM2-3dMed on the Medical Segmentation Decathlon",
        root=Path(words.root),
        tasks=tuple(_task(name, words) for name in TASKS),
        variants=paper_variants(),
        folds=tuple(range(words.all_folds)),
        seeds=tuple(range(words.all_seeds)),
        few=tuple(range(words.few_seeds)),
        others=tuple(_other(text) for text in words.others),
        notes=NOTES,
    )


def _task(name: str, words: Words) -> Task:
    title, folder, slice_mm, tolerance = TASKS[name]
    # Positions in slices, as the paper has them: the experiments themselves count in mm, which is a variant here. All
    # training cases train, since no run here chooses among its checkpoints.
    fields: dict[str, Any] = {
        "model__slice_position__unit": "slice",
        "model__slice_position__scale": 1.0,
        "data__inner_fraction": 0.0,
    }
    if words.init:
        fields |= {"model__init": words.init, "model__preset": words.preset or "sam2.1_hiera_large"}
    full = changed(read_experiment(str(HERE / f"{name}.py")), **fields)
    unet = changed(read_experiment(str(HERE / f"unet_{name}.py")), data__inner_fraction=0.0)
    return Task(name, title, folder, full, unet, slice_mm, tolerance_mm=tolerance)


def _other(text: str) -> Others:
    known = get_args(get_type_hints(Others)["trained_on_these_cases"])
    found = re.fullmatch(r"([^=]+)=([^=]+)=(\w+)", text)
    if not found or found[3] not in known:
        raise UserError(f"--others: '{text}' is no NAME=FOLDER=TRAINED, as nnU-Net=preds/{{task}}/{{fold}}=no")
    return Others(found[1], found[2], found[3])  # type: ignore[arg-type]


if __name__ == "__main__":
    words = tyro.cli(Words, description=__doc__)
    sys.exit(run(lambda: programme(words), words))
