"""Data of the phantom programme: one cohort per task, and a disjoint cohort of all organs for pre-training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
from sam2_3dmed_jax.data.prepared import is_prepared
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.resample import Spacing

RECORD = "dataset.json"


def workers() -> int:
    """Return the number of worker processes."""
    return min(os.cpu_count() or 1, 8)


def make_cohort(out: Path, task: str, cases: int, seed: int, matrix: int, progress: Progress) -> None:
    """Write the phantoms of one task, unless they exist."""
    if not (out / RECORD).exists():

        def report(what: str, done: int, total: int, note: str = "") -> None:
            progress(f"{what} of {out.name}", done, total, note)

        write_phantom_dataset(out, cases, seed, task, report, matrix=matrix, workers=workers())


def make_prepared(raw: Path, out: Path, spacing: Spacing, progress: Progress) -> None:
    """Write a prepared copy of a cohort, unless it exists.

    Raises:
        UserError: a case is refused.
    """
    if not is_prepared(str(out)):
        report = prepare_dataset(read_dataset(raw), out, PrepareConfig(spacing), workers=workers(), progress=progress)
        if report.refused:
            raise UserError(f"{raw}: {next(iter(report.refused.values()))}; delete the phantoms and write them again")


def check_disjoint(cohorts: Sequence[Path]) -> None:
    """Check that no person is in two cohorts.

    Raises:
        UserError: a person is in two cohorts.
    """
    seen: dict[int, Path] = {}
    for cohort in cohorts:
        for seed in set(json.loads((cohort / RECORD).read_text())["phantom"]["anatomy_seeds"].values()):
            if seed in seen:
                raise UserError(f"{cohort} and {seen[seed]} share the person {seed}; give another --seed")
            seen[seed] = cohort
