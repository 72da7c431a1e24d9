"""How results change with the prompt: a sweep over the checkpoints of a programme, a report a task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.paper.programme import Cell, Programme, cells
from experiments.paper.variants import Task
from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.console import ConsoleProgress
from sam2_3dmed_jax.evaluation.sweep.run import read_sweep, run_sweep

FOLDER = "robustness"
SWEPT = ("full", "neither")


def specs(programme: Programme, out: Path) -> Iterator[tuple[Task, SweepSpec]]:
    """Of each task whose runs are done: kinds of prompts, noisy, misplaced and scarce ones, by one factor at a time."""
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


def sweep(programme: Programme, out: Path, progress: ConsoleProgress) -> list[str]:
    """Run the sweeps, or go on with them; returns lines to print."""
    lines = []
    for task, spec in specs(programme, out):
        lines += run_sweep(read_sweep(spec), str(out / FOLDER / task.name), None, progress)
    return lines or ["no task has all runs that the sweep of prompts needs; run the programme first"]


def _checkpoint(cell: Cell, out: Path) -> Path:
    return cell.folder(out).resolve() / "run" / "final"
