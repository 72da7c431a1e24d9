"""Figures of training curves, and of predicted against true distances between slices."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.paper.page import Figure
from experiments.paper.positions import TABLE
from experiments.paper.programme import Programme, cells
from experiments.paper.variants import POSITIONS
from sam2_3dmed_jax.evaluation.report import plots

TWO_BY_TWO = ("neither", "srpp", "bd", "full")
SHOWN = 32  # points of a training curve; neighbouring logged steps are averaged


def draw(programme: Programme, out: Path) -> list[Figure]:
    """Return the figures of all available results."""
    drawn = []
    for task in programme.tasks:
        curves = list(_training(programme, out, task.name))
        if curves:
            caption = (
                f"{task.title}: Dice of training clips by step, mean of the runs of each variant of the two-by-two; "
                "bands from the lowest run to the highest."
            )
            svg = plots.curves(curves, "step", "Dice of training clips")
            drawn.append(Figure(f"figures/training_{task.name}.svg", svg, f"Training on {task.title}", caption))
        read = list(_positions(programme, out, task.name))
        if read:
            caption = (
                f"{task.title}: predicted distance between slices of held-out scans against the true one, in slices; "
                "mean over cases and runs, bands: 2.5th to 97.5th percentile of them. Perfect predictions are on "
                "the diagonal."
            )
            svg = plots.curves(read, "true distance (slices)", "predicted distance (slices)")
            drawn.append(Figure(f"figures/positions_{task.name}.svg", svg, f"Positions on {task.title}", caption))
    return drawn


def step_seconds(log: Path) -> float | None:
    """Return the median seconds per step of a run's log, or None without a log."""
    values = [float(row["seconds"]) for row in _read(log) if row.get("seconds")]
    return median(values) if values else None


def _training(programme: Programme, out: Path, task: str) -> Iterator[dict[str, Any]]:
    for variant in (v for v in programme.variants if v.name in TWO_BY_TWO):
        logs = [
            _read(cell.folder(out) / "run" / "log.csv")
            for cell in cells(programme)
            if (cell.task.name, cell.variant.name) == (task, variant.name)
        ]
        logs = [[(int(row["step"]), float(row["dice"])) for row in log] for log in logs if log]
        if not logs:
            continue
        last = max(log[-1][0] for log in logs)
        edges = np.linspace(0, last, min(SHOWN, len(logs[0])) + 1)
        for low, high in pairwise(edges):
            means = [np.mean(own) for log in logs if (own := [dice for step, dice in log if low < step <= high])]
            if means:
                yield _point((low + high) / 2, variant.label, means, (min(means), max(means)))


def _positions(programme: Programme, out: Path, task: str) -> Iterator[dict[str, Any]]:
    for variant in (v for v in programme.variants if POSITIONS in v.scorings):
        read: dict[int, list[float]] = {}
        for cell in cells(programme):
            if (cell.task.name, cell.variant.name) == (task, variant.name):
                for row in _read(cell.scores(out, POSITIONS) / TABLE):
                    distance = int(row["distance_slices"])
                    slices = float(row["predicted_mm"]) / float(row["true_mm"]) * distance
                    read.setdefault(distance, []).append(slices)
        for distance, values in read.items():
            ends = np.percentile(values, (2.5, 97.5))
            yield _point(distance, variant.label, values, (float(ends[0]), float(ends[1])))


def _point(x: float, series: str, values: Sequence[float], band: tuple[float, float]) -> dict[str, Any]:
    return {"x": float(x), "series": series, "mean": float(np.mean(values)), "ci95": tuple(map(float, band))}


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
