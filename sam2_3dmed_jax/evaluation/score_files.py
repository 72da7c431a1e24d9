"""Scoring of the label maps of any method, over processes: each class of a case gets a row.

A process scores one case at a time, on its CPU cores. The pictures of the worst cases are drawn at the end, from files
that are read again, so that they do not depend on the order in which cases are finished.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.class_rows import add_interactions, prompts_of_labels, score_classes, score_labels
from sam2_3dmed_jax.evaluation.interactive import score_step
from sam2_3dmed_jax.evaluation.journal import Journal
from sam2_3dmed_jax.evaluation.label_files import FilePair, read_pair, read_scan
from sam2_3dmed_jax.evaluation.nearest_component import nearest_components
from sam2_3dmed_jax.evaluation.report.worst_cases import PICTURE, add_pictures, worst
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.runtime import compilation_cache
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.runtime.worker_processes import WorkerDied, map_in_processes, number_of_workers
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_layers import LabelLayers

CASES_PER_WORKER = 4  # at least, by default, because a process takes seconds to start
Steps = tuple[FilePair, ...]  # the files of one case after each interaction, or one pair of files


@dataclass(frozen=True)
class FileReading:
    """How label maps of predictions are read.

    Attributes:
        remap: label values, and their new values.
        resample: move predictions to the grid of their reference by nearest neighbour.
    """

    remap: Mapping[int, int]
    resample: bool = False


AS_THEY_ARE = FileReading({})


def evaluate_files(
    pairs: Sequence[FilePair],
    settings: EvaluationSettings,
    progress: Progress | None = None,
    reading: FileReading = AS_THEY_ARE,
    journal: Journal | None = None,
    workers: int = 1,
) -> list[ScoreRow]:
    """Score the label maps of any method; for the protocol 'interactive', see `evaluate_steps`.

    Args:
        pairs: of files; a missing prediction counts as empty.
        settings: a protocol declares that every object of the method was prompted that way.
        progress: called after each case.
        reading: of predictions.
        journal: of finished cases, which are not scored again; the newly finished ones are added.
        workers: number of processes. With more than one, the caller's main module must be importable, and scores are
            computed on the CPU.

    Returns:
        One row per case and class, in their order; the worst ones have a picture.

    Raises:
        UserError: a file cannot be read, the grid of a prediction differs from the grid of its reference, or a process
            was killed.
    """
    return evaluate_steps([pairs], settings, progress, reading, journal, workers)


def evaluate_steps(
    steps: Sequence[Sequence[FilePair]],
    settings: EvaluationSettings,
    progress: Progress | None = None,
    reading: FileReading = AS_THEY_ARE,
    journal: Journal | None = None,
    workers: int = 1,
) -> list[ScoreRow]:
    """Score the label maps of any method after each interaction; the last one makes the scores of a row.

    Args:
        steps: pairs of files of each interaction, with cases in the same order; a missing prediction counts as empty.
        settings: with the protocol 'interactive', if there are several steps.
        progress: as in `evaluate_files`.
        reading: as in `evaluate_files`.
        journal: as in `evaluate_files`.
        workers: as in `evaluate_files`.

    Returns:
        As `evaluate_files`.

    Raises:
        UserError: as `evaluate_files`.
    """
    cases = list(zip(*steps, strict=True))
    names = [pairs[-1].case for pairs in cases]
    found = {name: known for name in names if journal and (known := journal.get(name)) is not None}
    unfinished = [pairs for pairs in cases if pairs[-1].case not in found]
    score = partial(_score_case, settings=settings, reading=reading, in_process=workers > 1 and len(unfinished) > 1)
    with contextlib.closing(map_in_processes(score, unfinished, workers)) as results:
        for pairs, rows in results:
            case = pairs[-1].case
            if isinstance(rows, WorkerDied):
                raise UserError(f"{case}: {rows.reason}, probably out of memory; use fewer --workers")
            found[case] = rows
            if journal:
                journal.add(case, rows)
            if progress:
                progress("evaluating files", len(found), len(cases))
    _draw_worst(cases, found, settings, reading)
    return [row for name in names for row in found[name]]


def default_workers(cases: int) -> int:
    """Return the number of processes for a number of cases when the user gives none."""
    return max(1, min(number_of_workers(None), cases // CASES_PER_WORKER))


def _score_case(pairs: Steps, settings: EvaluationSettings, reading: FileReading, in_process: bool) -> list[ScoreRow]:
    """Return the rows of a case, without pictures; `in_process` if this is a process of its own."""
    if in_process:
        _prepare_process()
    last = pairs[-1]
    missing = last.prediction is None
    if not settings.is_interactive:
        return score_labels(last.case, *_read(last, settings, reading), settings, missing)
    scores = []
    for number, pair in enumerate(pairs):
        labels, reference, grid = _read(pair, settings, reading)
        scores.append(score_step(number, labels, reference, grid, settings))
    rows = score_classes(last.case, labels, reference, grid, {}, settings, missing=missing)
    add_interactions(rows, scores)
    return rows


def _prepare_process() -> None:
    """Compute on the CPU, since the processes cannot share another device, with the programs that others compiled."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    compilation_cache.enable_by_default()


def _read(pair: FilePair, settings: EvaluationSettings, reading: FileReading) -> tuple[LabelLayers, LabelLayers, Grid]:
    """Return the prediction as it is scored, the reference, and their grid."""
    labels, reference, grid = read_pair(pair, reading.remap, reading.resample)
    if settings.nearest_component:
        prompts = prompts_of_labels(reference, grid, settings)
        labels = LabelLayers((nearest_components(labels.flat(), grid, settings.objects, prompts),))
    return labels, reference, grid


def _draw_worst(
    cases: Sequence[Steps], found: Mapping[str, list[ScoreRow]], settings: EvaluationSettings, reading: FileReading
) -> None:
    """Add pictures to the worst rows of all cases."""
    every_row = [row for pairs in cases for row in found[pairs[-1].case]]
    drawn = worst(every_row, settings.pictures)
    for row in every_row:
        row.pop(PICTURE, None)
    for pairs in cases:
        last, rows = pairs[-1], found[pairs[-1].case]
        if any(row is one for one in drawn for row in rows):
            labels, reference, grid = _read(last, settings, reading)
            masks = [(entry.mask(labels), entry.mask(reference)) for entry in settings.classes]
            scan = partial(read_scan, last, grid, settings.modality)
            add_pictures(drawn, rows, masks.__getitem__, grid.spacing, scan)
