"""A dataset of image files into shards and an index (`store`): in parallel, resumable, and not stopped by bad cases.

A further run into the same folder does what is missing, changed or damaged, and tries refused cases again.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import replace
from pathlib import Path

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.archive import md5_warning
from sam2_3dmed_jax.data.datasets import Dataset
from sam2_3dmed_jax.data.prepare.case import Task, prepare_case
from sam2_3dmed_jax.data.prepare.folder import (
    NEW,
    begin_changes,
    claimed,
    settings_record,
    standing,
    strangers,
    sweep,
)
from sam2_3dmed_jax.data.prepare.report import PreparedReport, write_refused
from sam2_3dmed_jax.data.prepare.source import Progress, source_record
from sam2_3dmed_jax.data.prepared import CaseEntry, PreparedDataset, is_prepared, read_prepared, write_index
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.worker_processes import Died, in_processes

MOST_WORKERS = 8  # by default: each holds a case in memory, which takes a GB or so
KEEP = PrepareConfig()


def prepare(
    dataset: Dataset,
    out: str | os.PathLike[str],
    settings: PrepareConfig = KEEP,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PreparedReport:
    """Prepare the cases of a dataset that are not prepared yet.

    Args:
        dataset: from `read_dataset`; if it declares no labels, any from 1 to 255 may occur.
        out: the folder to fill, on a local file system; an interrupted or earlier run there is continued.
        settings: of that folder for good.
        workers: processes; None: one a core, at most 8. With more than one, the caller's main module must be
            importable.
        progress: called with (what, done, total, note).

    Returns:
        The report. If no case could be prepared, there is no index.

    Raises:
        UserError: `out` holds something else, was made with other settings, is being written by another process, or
            cannot be written; `workers` is less than 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers: {workers} is no number of processes; give 1 or more")
    if "://" in os.fspath(out):
        raise UserError(f"{out} is no local folder, as `prepare` needs; give one, and copy it there afterwards")
    root, ids = Path(out), [case.id for case in dataset.cases]
    with claimed(root, dataset, settings):
        found = {case.id: standing(root, dataset, case) for case in dataset.cases}
        kept = {case_id: state.entry for case_id, state in found.items() if state.entry}
        removed = strangers(root, ids)
        if removed or any(state.why not in ("", NEW) for state in found.values()):
            begin_changes(root)
        source = source_record(dataset, root, progress)
        report = PreparedReport(PreparedDataset(str(out), dataset.name, {}, {}, source, ()), removed=removed)
        report.warnings = [*dataset.warnings]
        if dataset.archive and (warning := md5_warning(dataset.archive, source.get("md5", ""))):
            report.warnings.append(warning)
        tasks = [Task(case, found[case.id].stamp) for case in dataset.cases if case.id not in kept]
        entries = dict(kept)
        if progress and tasks:
            progress("cases", len(kept), len(ids), "")
        work = functools.partial(prepare_case, dataset=dataset, out=str(root), settings=settings)
        with contextlib.closing(in_processes(work, tasks, workers or default_workers())) as results:
            for count, (task, result) in enumerate(results, start=len(kept) + 1):
                case_id = task.case.id
                if isinstance(result, CaseEntry):
                    entries[case_id], report.done[case_id] = result, found[case_id].why
                elif isinstance(result, Died):
                    report.refused[case_id] = f"{result.reason}, for want of memory most likely; take fewer --workers"
                else:
                    report.refused[case_id] = result.reason
                    if result.traceback:
                        report.tracebacks[case_id] = result.traceback
                if progress:
                    progress("cases", count, len(ids), f"{len(report.refused)} refused" if report.refused else "")
        report.refused = dict(sorted(report.refused.items()))
        sweep(root, entries)
        write_refused(root, report.refused)
        report.dataset = _index(dataset, report.dataset, settings, entries)
    return report


def default_workers() -> int:
    """One a core that this process may use, at most `MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


def _index(
    dataset: Dataset, empty: PreparedDataset, settings: PrepareConfig, entries: dict[str, CaseEntry]
) -> PreparedDataset:
    """Write the index, unless it stands there as it would be written, or there is no case."""
    cases = tuple(entries[case_id] for case_id in sorted(entries))
    labels = dataset.labels or {value: f"label {value}" for value in sorted({v for case in cases for v in case.areas})}
    prepared = replace(empty, labels=labels, settings=settings_record(settings), cases=cases)
    if cases and not _stands(prepared):
        write_index(prepared)
    return prepared


def _stands(prepared: PreparedDataset) -> bool:
    try:
        return is_prepared(prepared.path) and read_prepared(prepared.path) == prepared
    except UserError:
        return False
