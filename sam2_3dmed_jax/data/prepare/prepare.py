"""Preparation of a dataset of image files for training: shards and an index, written in parallel and resumable.

Cases that cannot be prepared are reported and do not stop the others. A further run into the same folder prepares
missing, changed, damaged and refused cases.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.archive import md5_warning
from sam2_3dmed_jax.data.datasets import Dataset, scan_modality
from sam2_3dmed_jax.data.prepare.case import PrepareTask, RefusedCase, prepare_case
from sam2_3dmed_jax.data.prepare.folder import (
    NEW,
    CaseState,
    claim_folder,
    read_case_state,
    remove_index,
    remove_leftovers,
    settings_record,
    unknown_cases,
)
from sam2_3dmed_jax.data.prepare.report import PreparedReport, write_refused
from sam2_3dmed_jax.data.prepare.source import source_record
from sam2_3dmed_jax.data.prepared import PreparedCase, PreparedDataset, is_prepared, read_prepared, write_index
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.runtime.worker_processes import WorkerDied, map_in_processes, number_of_workers

AS_STORED = PrepareConfig()


def prepare_dataset(
    dataset: Dataset,
    out: str | os.PathLike[str],
    settings: PrepareConfig = AS_STORED,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PreparedReport:
    """Prepare the cases of a dataset that are not prepared yet.

    Args:
        dataset: from `read_dataset`; if it declares no labels, values from 1 to 255 are accepted.
        out: output folder on a local file system; an interrupted or earlier run in it is continued.
        settings: settings of the folder, which cannot change later.
        workers: number of processes; None: one per core, at most 8. With more than one, the caller's main module must
            be importable.
        progress: called after each case.

    Returns:
        The report. If no case could be prepared, the index is not written.

    Raises:
        UserError: `out` contains other files, has other settings, is in use by another process, or cannot be written;
            `workers` is less than 1.
    """
    workers = number_of_workers(workers)
    check_local(out)
    root = Path(out)
    with claim_folder(root, dataset, settings):
        modality = scan_modality(dataset, settings.modality)
        states = {case.id: read_case_state(root, dataset, case, modality) for case in dataset.cases}
        entries = {case_id: state.entry for case_id, state in states.items() if state.entry}
        removed = unknown_cases(root, [case.id for case in dataset.cases])
        if removed or any(state.reason not in ("", NEW) for state in states.values()):
            remove_index(root)
        source = source_record(dataset, root, progress)
        report = PreparedReport(PreparedDataset(str(out), dataset.name, {}, {}, source, ()), removed=removed)
        report.warnings = [*dataset.warnings]
        if dataset.archive and (warning := md5_warning(dataset.archive, source.get("md5", ""))):
            report.warnings.append(warning)
        prepare_one = functools.partial(prepare_case, dataset=dataset, out=str(root), settings=settings)
        _prepare_cases(prepare_one, dataset, states, entries, report, workers, progress)
        remove_leftovers(root, entries)
        write_refused(root, report.refused)
        report.dataset = _write_index(dataset, report.dataset, settings, entries)
    return report


def _prepare_cases(
    prepare_one: Callable[[PrepareTask], PreparedCase | RefusedCase],
    dataset: Dataset,
    states: Mapping[str, CaseState],
    entries: dict[str, PreparedCase],
    report: PreparedReport,
    workers: int,
    progress: Progress | None,
) -> None:
    """Prepare the cases without an entry, and add the results to `entries` and `report`."""
    tasks = [PrepareTask(case, states[case.id].stamps) for case in dataset.cases if case.id not in entries]
    finished, total = len(entries), len(dataset.cases)
    if progress and tasks:
        progress("cases", finished, total)
    with contextlib.closing(map_in_processes(prepare_one, tasks, workers)) as results:
        for count, (task, result) in enumerate(results, start=finished + 1):
            case_id = task.case.id
            if isinstance(result, PreparedCase):
                entries[case_id], report.done[case_id] = result, states[case_id].reason
            elif isinstance(result, WorkerDied):
                report.refused[case_id] = f"{result.reason}, probably out of memory; use fewer --workers"
            else:
                report.refused[case_id] = result.reason
                if result.traceback:
                    report.tracebacks[case_id] = result.traceback
            if progress:
                progress("cases", count, total, f"{len(report.refused)} refused" if report.refused else "")
    report.refused = dict(sorted(report.refused.items()))


def _write_index(
    dataset: Dataset, empty: PreparedDataset, settings: PrepareConfig, entries: Mapping[str, PreparedCase]
) -> PreparedDataset:
    """Return the prepared dataset; write its index unless it exists unchanged or there are no cases."""
    cases = tuple(entries[case_id] for case_id in sorted(entries))
    labels = dataset.labels or {value: f"label {value}" for value in sorted({v for case in cases for v in case.areas})}
    prepared = replace(empty, labels=labels, settings=settings_record(settings), cases=cases)
    if cases and not _is_written(prepared):
        write_index(prepared)
    return prepared


def _is_written(prepared: PreparedDataset) -> bool:
    """Return whether the folder has the index of this dataset."""
    try:
        return is_prepared(prepared.path) and read_prepared(prepared.path) == prepared
    except UserError:
        return False
