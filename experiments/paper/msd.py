"""Runs of the paper's tables on the Decathlon from an official checkpoint: `experiments/{spleen,pancreas,lung}.py`.

    python -m experiments.paper.msd --out results

runs in the folder that contains `checkpoints/`, `data/` and the Decathlon's folders (see README.md). Start the command
on each machine that shares the folder; each process takes runs that no other process has taken. `--others` adds rows
for the label maps of other methods.
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
from experiments.paper.variants import OtherMethod, Task, changed, paper_variants
from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.errors import UserError

HERE = Path(__file__).resolve().parents[1]
TASKS: dict[str, tuple[str, str, float, str]] = {  # name: title, folder, slice in mm, tolerance in mm
    "spleen": ("Spleen (Task09)", "Task09_Spleen", 5.0, "3"),
    "pancreas": ("Pancreas and tumour (Task07)", "Task07_Pancreas", 2.5, "5"),
    "lung": ("Lung tumour (Task06)", "Task06_Lung", 1.245, "2"),
}
NOTES = (
    "Cross-validation on the training cases, nnU-Net's folds; the Decathlon's own test labels are withheld.",
    "A click solves the detection of the object: no row of the reference-prompted block is called better than a row of "
    "the automatic block, and none is tested against one.",
)


@dataclass(frozen=True)
class MsdOptions(Options):
    """Command-line options of the Decathlon programme."""

    out: str = "results"
    root: str = "."  # folder with checkpoints/, data/ and the Decathlon's folders
    init: str = ""  # another initial checkpoint, of `preset`; "": from the experiments
    preset: str = ""  # preset of `init`
    all_seeds: int = 6  # of the two-by-two: with few, the test over cases and seeds has few degrees of freedom
    few_seeds: int = 3  # of the other variants
    all_folds: int = 5
    others: tuple[
        str, ...
    ] = ()  # NAME=FOLDER/{task}/{fold}=TRAINED: label maps of a method; TRAINED: yes, no or unknown


def programme(options: MsdOptions) -> Programme:
    """Return all runs.

    Raises:
        UserError: a value of `others` has another form.
    """
    return Programme(
        title="SAM2-3dMed on the Medical Segmentation Decathlon",
        root=Path(options.root),
        tasks=tuple(_task(name, options) for name in TASKS),
        variants=paper_variants(),
        folds=tuple(range(options.all_folds)),
        seeds=tuple(range(options.all_seeds)),
        few=tuple(range(options.few_seeds)),
        others=tuple(_other(text) for text in options.others),
        notes=NOTES,
    )


def _task(name: str, options: MsdOptions) -> Task:
    title, folder, slice_mm, tolerance = TASKS[name]
    # Positions are in slices, as in the paper; the experiments use mm, which is a variant here. No inner cases are held
    # out, because no run here selects among its checkpoints.
    fields: dict[str, Any] = {
        "model__slice_position__unit": "slice",
        "model__slice_position__scale": 1.0,
        "data__split__inner_fraction": 0.0,
    }
    if options.init:
        fields |= {"model__init": options.init, "model__preset": options.preset or "sam2.1_hiera_large"}
    full = changed(read_experiment(str(HERE / f"{name}.py")), **fields)
    unet = changed(read_experiment(str(HERE / f"unet_{name}.py")), data__split__inner_fraction=0.0)
    return Task(name, title, folder, full, unet, slice_mm, tolerance_mm=tolerance)


def _other(text: str) -> OtherMethod:
    known = get_args(get_type_hints(OtherMethod)["trained_on_these_cases"])
    match = re.fullmatch(r"([^=]+)=([^=]+)=(\w+)", text)
    if not match or match[3] not in known:
        raise UserError(f"--others: '{text}' is not NAME=FOLDER=TRAINED, as in nnU-Net=preds/{{task}}/{{fold}}=no")
    return OtherMethod(match[1], match[2], match[3])  # type: ignore[arg-type]


if __name__ == "__main__":
    options = tyro.cli(MsdOptions, description=__doc__)
    sys.exit(run(lambda: programme(options), options))
