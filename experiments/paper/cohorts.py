"""The data of the phantom programme: a cohort a task, and a disjoint one of all tasks to train the encoder on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.prepare.prepare import prepare
from sam2_3dmed_jax.data.prepared import is_prepared
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.volume.resample import Spacing

Progress = Callable[..., None]
RECORD = "dataset.json"


def workers() -> int:
    """Processes that make data."""
    return min(os.cpu_count() or 1, 8)


def make_cohort(out: Path, task: str, cases: int, seed: int, matrix: int, progress: Progress) -> None:
    """Phantoms of one task, if they are not there."""
    if not (out / RECORD).exists():
        told = f"phantoms of {out.name}"
        write_phantom_dataset(
            out, cases, seed, task, lambda done, all_: progress(told, done, all_), matrix=matrix, workers=workers()
        )


def make_prepared(raw: Path, out: Path, spacing: Spacing, progress: Progress) -> None:
    """A prepared copy, if it is not there.

    Raises:
        UserError: a case is refused.
    """
    if not is_prepared(str(out)):
        report = prepare(read_dataset(raw), out, PrepareConfig(spacing), workers=workers(), progress=progress)
        if report.refused:
            raise UserError(f"{raw}: {next(iter(report.refused.values()))}; make the phantoms again")


def check_disjoint(cohorts: Sequence[Path]) -> None:
    """See that no person is in two cohorts.

    Raises:
        UserError: one is.
    """
    seen: dict[int, Path] = {}
    for cohort in cohorts:
        for seed in set(json.loads((cohort / RECORD).read_text())["phantom"]["anatomy_seeds"].values()):
            if seed in seen:
                raise UserError(f"{cohort} and {seen[seed]} share the person {seed}; give another --seed")
            seen[seed] = cohort
