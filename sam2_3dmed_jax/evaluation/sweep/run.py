"""Sweep runs: the spec is checked, cases are shared over processes and devices, and tables are written at the end."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from queue import Empty, SimpleQueue

import jax

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.data.case_content import recorded_to_json
from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase, dataset_files, read_dataset, require_folder
from sam2_3dmed_jax.data.held_out import DatasetCases
from sam2_3dmed_jax.errors import UserError, number_of
from sam2_3dmed_jax.evaluation.result_files import table_text, write_files
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.evaluation.sweep import sweep_tables
from sam2_3dmed_jax.evaluation.sweep.case_sweep import CaseSweep, propagations_of
from sam2_3dmed_jax.evaluation.sweep.cells import FOLDER, Cells
from sam2_3dmed_jax.evaluation.sweep.entries import Entry, read_entries
from sam2_3dmed_jax.evaluation.sweep.factors import Setting, check_spec, settings_of
from sam2_3dmed_jax.evaluation.sweep.features import Models
from sam2_3dmed_jax.evaluation.sweep.sweep_report import sweep_page
from sam2_3dmed_jax.metrics.mask_pair import MetricSettings
from sam2_3dmed_jax.model.checkpoint import checkpoint_files
from sam2_3dmed_jax.prompts.perturbation import OTHER
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtype, resolve_compute_dtype
from sam2_3dmed_jax.runtime.config_check import check_config
from sam2_3dmed_jax.runtime.folder_lock import LOCK, one_job
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFolder, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume import label_classes
from sam2_3dmed_jax.volume.io import check_readable, read_grid, stored_modality
from sam2_3dmed_jax.volume.modality import ModalitySources, dicom_modality, parse_modality

Job = tuple[LabelledCase, list[Entry]]  # a case, and the checkpoints that are scored on it


@dataclass(frozen=True, eq=False)
class Sweep:
    """A checked sweep; nothing is written yet."""

    spec: SweepSpec
    dataset: Dataset
    entries: list[Entry]
    settings: list[Setting]
    evaluation: EvaluationSettings

    @property
    def jobs(self) -> list[Job]:
        """The cases to score, in the order of the dataset, with their checkpoints."""
        jobs = [(case, [entry for entry in self.entries if case.id in entry.cases]) for case in self.dataset.cases]
        return [(case, entries) for case, entries in jobs if entries]

    @functools.cached_property
    def compute_dtype(self) -> ComputeDtype:
        """The dtype in which this process predicts; "auto" starts JAX's devices."""
        return resolve_compute_dtype(self.spec.compute_dtype)

    def propagations(self, jobs: Sequence[Job]) -> int:
        """Return the number of propagations through volumes that jobs need."""
        return sum(len(propagations_of(self.settings, entry)) for _, entries in jobs for entry in entries)

    @property
    def size(self) -> str:
        """The size of the sweep, in one line."""
        cells = sum(
            len(thresholds) * len(entry.cases)
            for entry in self.entries
            for thresholds in propagations_of(self.settings, entry).values()
        ) * len(self.evaluation.classes)
        return (
            f"{number_of(cells, 'cell')}: {number_of(len(self.settings), 'setting')}, "
            f"{number_of(len(self.entries), 'checkpoint')}, {number_of(len(self.jobs), 'case')}, "
            f"{number_of(len(self.evaluation.classes), 'class', 'classes')}; "
            f"{number_of(self.propagations(self.jobs), 'propagation')} through volumes"
        )


def read_sweep(spec: SweepSpec) -> Sweep:
    """Check a sweep, with all files that it names; only the headers of volumes are read.

    Raises:
        UserError: an invalid field, or files that cannot be read or do not fit each other.
    """
    check_config(spec)
    check_spec(spec)
    dataset = require_folder(read_dataset(spec.data))
    if not dataset.labels and not spec.classes:
        raise UserError(
            f"classes: {spec.data} has no dataset.json that declares labels; give those to score, such as '1=spleen'"
        )
    named = label_classes.parse_classes(spec.classes, dataset.labels) if spec.classes else None
    classes = label_classes.with_tolerances(
        named or label_classes.declared_classes(dataset.labels), spec.tolerance_mm or None, dataset.name
    )
    targets = label_classes.parse_targets(spec.targets, dataset.labels) if spec.targets else None
    metrics = MetricSettings(spec.definition, spec.empty, spec.metrics == "all")
    sources = ModalitySources(parse_modality(spec.modality, "modality"), dicom_modality(dataset.modality))
    evaluation = EvaluationSettings(classes, targets=targets, metrics=metrics, modality=sources)
    sweep = Sweep(spec, dataset, read_entries(spec, dataset), settings_of(spec), evaluation)
    for case, entries in sweep.jobs:
        metrics.check_grid(read_grid(case.image))
        for entry in entries:
            checked = replace(sources, preprocessing=entry.info.preprocessing, checkpoint=entry.checkpoint)
            checked.modality(stored_modality(case.image), case.image)
    return sweep


def parse_shard(text: str | None) -> tuple[int, int]:
    """Return (I - 1, N) from `I/N`, the I-th of N parts of the cases, counted from 1.

    Raises:
        UserError: another form, or a part in a run of several processes, which share the cases already.
    """
    if distributed.is_distributed():
        if text:
            raise UserError("--shard: the processes of this run share the cases already; leave it out")
        return jax.process_index(), jax.process_count()
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard: '{text}' is not a part; give I/N with I from 1 to N, such as 1/4")
    return int(match[1]) - 1, int(match[2])


def run_sweep(sweep: Sweep, out: str, shard: str | None, progress: Progress) -> list[str]:
    """Compute the cells of this process's cases; when all cells are finished, write the tables and the report.

    Args:
        sweep: from `read_sweep`.
        out: folder of the results.
        shard: `I/N`, or None for all cases.
        progress: called after each propagation.

    Returns:
        Lines to print.

    Raises:
        UserError: the folder has another sweep, another process works on this part of it, it cannot be written, or
            files of a case do not fit each other.
    """
    tables = (sweep_tables.TABLE, sweep_tables.SUMMARY, sweep_tables.RECORD, sweep_tables.REPORT)
    spec = sweep.spec
    check_outputs(
        [OutputFolder("--out", out, owns=(FOLDER, *tables))],
        [
            Input("data", spec.data, lambda: dataset_files(read_dataset(spec.data), spec.data)),
            *(
                Input("checkpoints", entry.checkpoint, functools.partial(checkpoint_files, entry.checkpoint))
                for entry in sweep.entries
            ),
        ],
    )
    index, parts = parse_shard(shard)
    with one_job(out, "give another --out or --shard", f"{LOCK}-{index + 1}-of-{parts}"):
        return _run_shard(sweep, out, index, parts, progress)


def _run_shard(sweep: Sweep, out: str, index: int, parts: int, progress: Progress) -> list[str]:
    """Do the work of `run_sweep` for a part of the cases that no other process works on."""
    cells = Cells(out)
    distributed.run_on_first_process(lambda: _claim(sweep, cells))
    jobs = sweep.jobs[index::parts]
    check_readable([(case.image, case.label) for case, _ in jobs], progress)
    total, number = sweep.propagations(jobs), count(1)
    work = CaseSweep(
        sweep.settings,
        sweep.evaluation,
        sweep.spec.prompt_seed,
        cells,
        lambda: progress("sweeping", next(number), total),
    )
    _on_devices(work, jobs, sweep.compute_dtype)
    distributed.wait_for_all("sweep")
    lines: list[str] = []
    distributed.run_on_first_process(lambda: lines.extend(_write(sweep, out, cells, progress)))
    return lines


def _claim(sweep: Sweep, cells: Cells) -> None:
    cases = DatasetCases(sweep.dataset)
    files = {case.id: recorded_to_json(cases.files(case.id)) for case, _ in sweep.jobs}
    cells.claim(sweep.spec, sweep.entries, cases.fingerprint, files, sweep.compute_dtype)


def _on_devices(work: CaseSweep, jobs: Sequence[Job], compute_dtype: ComputeDtype) -> None:
    """Let each local device take the next case when it has finished one."""
    waiting: SimpleQueue[Job] = SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def take(device: jax.Device | None) -> None:
        # Arrays are not committed to a device, since committed ones would compile again.
        with jax.default_device(device) if device else nullcontext():
            models = Models(compute_dtype)
            while not work.stop.is_set():
                try:
                    case, entries = waiting.get_nowait()
                except Empty:
                    return
                work(models, case, entries)

    devices = jax.local_devices()[: max(len(jobs), 1)]
    if len(devices) == 1:  # in this thread, which receives signals
        take(None)
        return
    with ThreadPoolExecutor(len(devices)) as pool:
        running = [pool.submit(take, device) for device in devices]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:  # a device has failed, this thread was interrupted, or all cases are finished
            work.stop.set()
        for one in running:
            one.result()


def _write(sweep: Sweep, out: str, cells: Cells, progress: Progress) -> list[str]:
    rows, missing = sweep_tables.read_rows(sweep.entries, sweep.settings, cells)
    if missing:
        total = sweep.propagations(sweep.jobs)
        return [f"{total - missing} of {total} propagations are done in {out}; the last --shard writes the tables"]
    summary = sweep_tables.summary_rows(rows, progress)
    record = sweep_tables.record(sweep.spec, sweep.entries, rows, summary, sweep.compute_dtype)
    row_texts, summary_texts = ([sweep_tables.as_text(row) for row in table] for table in (rows, summary))
    texts = {
        sweep_tables.TABLE: table_text(sweep_tables.row_columns(), row_texts),
        sweep_tables.SUMMARY: table_text(sweep_tables.summary_columns(), summary_texts),
        sweep_tables.RECORD: json.dumps(record, indent=2, allow_nan=False) + "\n",
        sweep_tables.REPORT: sweep_page(sweep.spec, summary, record),
    }
    write_files(texts, out)
    cells.tidy()
    *names, last = texts
    return [
        *(f"note: {note}" for note in dict.fromkeys((*sweep.dataset.warnings, *_notes(sweep.entries)))),
        *([f"note: {sweep_tables.NO_SWAP}"] if _lacks_swaps(sweep, rows) else []),
        sweep.size,
        sweep_tables.WHY,
        f"{', '.join(names)} and {last} in {out} (for research use only)",
    ]


def _lacks_swaps(sweep: Sweep, rows: Sequence[ScoreRow]) -> bool:
    """Return whether prompts of other objects are requested, but no case has another object."""
    return OTHER in sweep.spec.prompt_of and not any(row["prompt_of"] == OTHER for row in rows)


def _notes(entries: Sequence[Entry]) -> list[str]:
    return [note for entry in entries for note in entry.notes]
