"""What `sweep` does: all is checked, cases are shared over processes and devices, and tables are written at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue

import jax

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.data.datasets import Case, Dataset, fingerprint, on_disk, read_dataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.results import table_text, write_files
from sam2_3dmed_jax.evaluation.scores import Measure, check_grid
from sam2_3dmed_jax.evaluation.settings import Plan
from sam2_3dmed_jax.evaluation.sweep import results
from sam2_3dmed_jax.evaluation.sweep.case_sweep import CaseSweep, walks_of
from sam2_3dmed_jax.evaluation.sweep.cells import Cells
from sam2_3dmed_jax.evaluation.sweep.entries import Entry, read_entries
from sam2_3dmed_jax.evaluation.sweep.features import Models
from sam2_3dmed_jax.evaluation.sweep.report import sweep_page
from sam2_3dmed_jax.evaluation.sweep.settings import Setting, check_spec, settings_of
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.volume import label_classes
from sam2_3dmed_jax.volume.io import read_grid

Progress = Callable[[str, int, int], None]  # (what, done, total)
Job = tuple[Case, list[Entry]]  # a case, and the checkpoints that are scored on it


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep that has been checked; nothing is written yet."""

    spec: SweepSpec
    dataset: Dataset
    entries: list[Entry]
    settings: list[Setting]
    plan: Plan

    @property
    def jobs(self) -> list[Job]:
        """Cases in the dataset's order."""
        jobs = [(case, [entry for entry in self.entries if case.id in entry.cases]) for case in self.dataset.cases]
        return [(case, entries) for case, entries in jobs if entries]

    def walks(self, jobs: Sequence[Job]) -> int:
        """Walks through volumes, each a propagation, that jobs are."""
        return sum(len(walks_of(self.settings, entry)) for _, entries in jobs for entry in entries)

    @property
    def size(self) -> str:
        """How much it is, in a line."""
        cells = sum(
            len(given) * len(entry.cases) for entry in self.entries for given in walks_of(self.settings, entry).values()
        ) * len(self.plan.classes)
        return (
            f"{cells} cells: {len(self.settings)} settings, {len(self.entries)} checkpoints, {len(self.jobs)} cases, "
            f"{len(self.plan.classes)} classes; {self.walks(self.jobs)} walks through volumes"
        )


def read_sweep(spec: SweepSpec) -> Sweep:
    """Check a sweep, with all files that it names; no volume is read but for its header.

    Raises:
        UserError: whatever does not fit.
    """
    check_spec(spec)
    dataset = on_disk(read_dataset(spec.data))
    if not dataset.labels and not spec.classes:
        raise UserError(
            f"classes: {spec.data} has no dataset.json that declares labels; give those to score, such as '1=spleen'"
        )
    named = label_classes.parse_classes(spec.classes, dataset.labels) if spec.classes else None
    classes = label_classes.with_tolerances(
        named or label_classes.declared_classes(dataset.labels), spec.tolerance_mm or None, dataset.name
    )
    targets = label_classes.parse_targets(spec.targets) if spec.targets else None
    measure = Measure(spec.definition, spec.empty, spec.metrics == "all")
    plan = Plan(classes, targets=targets, measure=measure)
    sweep = Sweep(spec, dataset, read_entries(spec, dataset), settings_of(spec), plan)
    for case, _ in sweep.jobs:
        check_grid(read_grid(case.image), measure)
    return sweep


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read `I/N`: the I-th of N parts of the cases, from 1; as (I - 1, N).

    Raises:
        UserError: another form, or a part in several processes, which have parts already.
    """
    if distributed.several():
        if text:
            raise UserError("--shard: the processes of this run share the cases by themselves; leave it out")
        return jax.process_index(), jax.process_count()
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard: '{text}' is no part; give I/N with I from 1 to N, such as 1/4")
    return int(found[1]) - 1, int(found[2])


def run_sweep(sweep: Sweep, out: str, shard: str | None, progress: Progress) -> list[str]:
    """Finish the cells of this process's cases; when those of all are there, write the tables and the report.

    Args:
        sweep: checked.
        out: folder of the results.
        shard: `I/N`, or None for all cases.
        progress: told of each walk.

    Returns:
        Lines to print.

    Raises:
        UserError: the folder holds another sweep or cannot be written, or files of a case do not fit.
    """
    index, parts = parse_shard(shard)
    cells = Cells(out)
    distributed.first(lambda: cells.claim(sweep.spec, sweep.entries, fingerprint(sweep.dataset)))
    jobs = sweep.jobs[index::parts]
    total, walks = sweep.walks(jobs), count(1)
    work = CaseSweep(
        sweep.settings,
        sweep.plan,
        sweep.spec.prompt_seed,
        cells,
        lambda: progress("sweeping", next(walks), total),
    )
    _on_devices(work, jobs)
    distributed.all_done("sweep")
    lines: list[str] = []
    distributed.first(lambda: lines.extend(_write(sweep, out, cells, progress)))
    return lines


def _on_devices(work: CaseSweep, jobs: Sequence[Job]) -> None:
    """Each local device takes the next case when it is done with one."""
    waiting: SimpleQueue[Job] = SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def take(device: jax.Device | None) -> None:
        # Nothing is committed to a device: arrays that are compile anew. The lone one is the default one anyway.
        with jax.default_device(device) if device else nullcontext():
            models = Models()
            while not work.stop.is_set():
                try:
                    case, entries = waiting.get_nowait()
                except Empty:
                    return
                work(models, case, entries)

    devices = jax.local_devices()[: max(len(jobs), 1)]
    if len(devices) == 1:  # in this thread, which signals reach
        take(None)
        return
    with ThreadPoolExecutor(len(devices)) as pool:
        running = [pool.submit(take, device) for device in devices]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:  # one has failed, this thread was interrupted, or all are done
            work.stop.set()
        for one in running:
            one.result()


def _write(sweep: Sweep, out: str, cells: Cells, progress: Progress) -> list[str]:
    rows, missing = results.read_rows(sweep.entries, sweep.settings, cells)
    if missing:
        done = sweep.walks(sweep.jobs) - missing
        return [f"{done} of {done + missing} walks are done in {out}; the tables come with the last --shard"]
    summary = results.summary_rows(rows, progress)
    record = results.record(sweep.spec, sweep.entries, rows, summary)
    texts = {
        results.TABLE: table_text(results.ROW_COLUMNS, [results.as_text(row) for row in rows]),
        results.SUMMARY: table_text(results.SUMMARY_COLUMNS, [results.as_text(row) for row in summary]),
        results.RECORD: json.dumps(record, indent=2, allow_nan=False) + "\n",
        results.REPORT: sweep_page(sweep.spec, summary, record),
    }
    write_files(texts, out)
    cells.tidy()
    *names, last = texts
    return [
        *(f"note: {warning}" for warning in sweep.dataset.warnings),
        sweep.size,
        results.WHY,
        f"{', '.join(names)} and {last} in {out} (for research use only)",
    ]
