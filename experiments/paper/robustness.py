"""Robustness to the prompt: a sweep over the checkpoints of a programme, with one report per task."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from experiments.paper.page import Figure
from experiments.paper.programme import Cell, Programme, cells
from experiments.paper.variants import Task
from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.evaluation.report import plots
from sam2_3dmed_jax.evaluation.sweep.factors import FACTORS
from sam2_3dmed_jax.evaluation.sweep.run import read_sweep, run_sweep
from sam2_3dmed_jax.evaluation.sweep.sweep_tables import MACRO, SUMMARY
from sam2_3dmed_jax.runtime.progress import Progress

FOLDER = "robustness"
SWEPT = ("full", "neither")
CURVES = {"misplacement_mm": "misplacement (mm)", "noise_mm": "noise, SD (mm)"}


def specs(programme: Programme, out: Path) -> Iterator[tuple[Task, SweepSpec]]:
    """Yield the sweep of each task whose runs are done: kind, noise, misplacement and number of prompts."""
    every = cells(programme)
    for task in programme.tasks:
        own = [c for c in every if c.task == task and c.variant.name in SWEPT and c.seed == programme.few[0]]
        if own and all((_checkpoint(cell, out) / "config.json").exists() for cell in own):
            paths = dict.fromkeys(
                str(_checkpoint(cell, out)).replace(f"-fold{cell.fold}-", "-fold{fold}-") for cell in own
            )
            yield (
                task,
                SweepSpec(
                    checkpoints=tuple(paths),
                    data=str(programme.root / task.raw),
                    folds=programme.folds,
                    prompt=("point", "box", "mask"),
                    placement=("centre", "random"),
                    noise_mm=(0.0, 2.0, 5.0, 10.0),
                    misplacement_mm=(0.0, 2.0, 5.0, 10.0),
                    neighbour=(False, True),
                    prompted_slices=(1, 2, 3),
                    threshold=(0.0, -1.0, 1.0),
                    design="one-at-a-time",
                    crossed=("prompt",),
                    classes=task.classes or "",
                    tolerance_mm=task.tolerance_mm or "",
                ),
            )


def sweep(programme: Programme, out: Path, progress: Progress) -> list[str]:
    """Run or resume the sweeps and return lines to print."""
    lines = []
    for task, spec in specs(programme, out):
        lines += run_sweep(read_sweep(spec), str(out / FOLDER / task.name), None, progress)
    return lines or ["no task has all runs that the sweep needs; run the programme first"]


def curves(programme: Programme, out: Path) -> list[Figure]:
    """Return curves of Dice against noise and misplacement of prompts, from finished sweeps."""
    figures = []
    for task in programme.tasks:
        file = out / FOLDER / task.name / SUMMARY
        if not file.exists():
            continue
        with file.open(newline="") as table:
            rows = [row for row in csv.DictReader(table) if row["class"] == MACRO and row["dice_mean"]]
        for factor, axis in CURVES.items():
            fixed = [name for name in FACTORS if name not in (factor, "prompt", "bd")]
            points = []
            for row in rows:
                # The first row of a kind of prompt is its base; all other factors must be equal to it.
                base = next(other for other in rows if other["prompt"] == row["prompt"])
                if all(row.get(name) == base.get(name) for name in fixed):  # earlier sweeps have fewer factors
                    ends = (row["dice_ci95_low"], row["dice_ci95_high"])
                    points.append(
                        {
                            "x": float(row[factor]),
                            "series": f"{row['prompt']}, {_label(programme, row['model'])}",
                            "mean": float(row["dice_mean"]),
                            "ci95": tuple(map(float, ends)) if all(ends) else None,
                        }
                    )
            if points:
                caption = (
                    f"{task.title}: mean Dice over classes against {axis} of the prompt, by kind of prompt; bands: "
                    f"95 % intervals over cases. Exploratory. {FOLDER}/{task.name} has all conditions."
                )
                svg = plots.curves(points, axis, "mean Dice")
                name = f"figures/robustness_{factor}_{task.name}.svg"
                figures.append(Figure(name, svg, f"Robustness on {task.title}", caption))
    return figures


def _label(programme: Programme, model: str) -> str:
    return next((v.label for v in programme.rows if f"-{v.name}-fold" in model), model)


def _checkpoint(cell: Cell, out: Path) -> Path:
    return cell.folder(out).resolve() / "run" / "final"
