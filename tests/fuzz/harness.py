"""The fuzzer: a pool of worker processes, the schedule of inputs, and the table of what happened.

An input is a function of kind, seed and index, so that each can be made again alone. A worker that crashes or hangs is
replaced, and the files of the input that it was reading are kept.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import worker
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.worker import INPUT, SECONDS, Report

TABLE = "tests.fuzz.kinds"
CHUNK = 25  # inputs of one kind in a row
START_SECONDS = 120.0  # to start a worker, to make a seed and to warm up
MARGIN = 1.5  # times the limit, to mutate the input and to answer
IDLE = 0.002  # share of the time of a processor, below which a worker sleeps
INPUTS_PER_WORKER = 10_000  # after which a worker is replaced, so that its memory stays small


@dataclass
class Outcome:
    """What happened to the inputs of a kind."""

    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0  # seconds
    growth_mib: int = 0  # the largest of one input
    failures: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count an input."""
        self.inputs += 1
        self.accepted += report.accepted
        self.slowest = max(self.slowest, report.seconds)
        self.growth_mib = max(self.growth_mib, report.growth_mib)
        if report.problems:
            self.failures.append(report)


class Reader:
    """One worker process after the other; each answers requests."""

    def __init__(self, folder: Path, failures: Path | None, seed: int, table: str, seconds: float):
        self._folder, self._failures, self._seed = folder, failures, seed
        self._table, self._seconds = table, seconds
        self._number = 0
        self._known: set[str] = set()  # kinds that the process has read
        self._process = None
        self._answered = 0

    def read(self, kind: str, index: int) -> Report:
        """Return the report of an input; a crash and a hang are reports, too."""
        if self._process is None or self._answered >= INPUTS_PER_WORKER:
            self._replace()
        line: bytes | None = b"{}"
        if kind not in self._known:  # its seed is made, which is not the work of an input
            line = self._ask({"kind": kind, "prepare": True}, START_SECONDS)
            self._known.add(kind)
        if line:
            line = self._ask({"kind": kind, "seed": self._seed, "index": index}, self._seconds * MARGIN)
        if line:
            self._answered += 1
            report = Report(**json.loads(line))
        else:
            report = self._ended(kind, index, hung=line is None)
        if report.problems and self._failures:
            self._keep(report)
        if not line:
            self.close()
        return report

    def _ask(self, request: Mapping[str, object], limit: float) -> bytes | None:
        """Return the answer to a request; nothing if the worker has ended, and None if it does not answer."""
        assert self._process and self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return self._process.stdout.readline() if self._answers(limit) else None
        except OSError:
            return b""

    def _answers(self, limit: float) -> bool:
        """Wait until the worker answers, and return whether it does.

        A worker that the machine gives little time has more than `limit` seconds, unless it sleeps.
        """
        assert self._process and self._process.stdout
        start = used = cpu_seconds(self._process.pid)
        while not select.select([self._process.stdout], [], [], limit)[0]:
            before, used = used, cpu_seconds(self._process.pid)
            if used - start > limit or used - before < IDLE * limit:
                return False
        return True

    def close(self) -> None:
        """End the worker."""
        if self._process:
            worker.stop(self._process)
        self._process = None

    def _replace(self) -> None:
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._number += 1
        self._answered = 0
        self._known = set()
        self._process = worker.start(self._root, self._folder.parent / "seeds", self._table)

    @property
    def _root(self) -> Path:
        return self._folder / f"worker{self._number}"

    def _ended(self, kind: str, index: int, hung: bool) -> Report:
        assert self._process
        if hung:
            worker.stop(self._process, hung=True)
            problem, seconds = f"no answer in {self._seconds:.0f} s", self._seconds
        else:
            code, seconds = self._process.wait(), 0.0
            problem = f"crash {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"
        crash = self._folder / f"{self._root.name}.crash"
        details = crash.read_text(errors="replace").partition("Extension modules")[0] if crash.exists() else ""
        return Report(kind, index, problems=[problem], details=details, seconds=seconds)

    def _keep(self, report: Report) -> None:
        """Keep the files of an input, and its report."""
        assert self._failures
        target = self._failures / f"{re.sub('[^A-Za-z0-9]+', '_', report.kind)}-{self._seed}-{report.index}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "report.json").write_text(json.dumps(vars(report), indent=1))
        (target / "input").mkdir()
        for path in sorted((self._root / "in" / INPUT).rglob("*")):
            copy = target / "input" / path.relative_to(self._root / "in" / INPUT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                copy.symlink_to(os.readlink(path))
            elif path.is_fifo():
                os.mkfifo(copy)
            elif path.is_file():
                shutil.copyfile(path, copy)


def cpu_seconds(pid: int) -> float:
    """Return the time of a processor that a process, and its children, have taken."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return 0.0
    own = sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


def shares(inputs: int, kinds: Sequence[Kind] = KINDS) -> dict[str, int]:
    """Return the number of inputs of each available kind, of `inputs` together or a few more."""
    available = [kind for kind in kinds if kind.is_available]
    total = sum(kind.share for kind in available)
    return {kind.name: max(1, round(inputs * kind.share / total + 0.5)) for kind in available}


def run(
    counts: Mapping[str, int],
    seed: int,
    folder: Path,
    workers: int = 1,
    failures: Path | None = None,
    journal: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    table: str = TABLE,
    seconds: float = SECONDS,
) -> dict[str, Outcome]:
    """Read inputs of all kinds.

    Args:
        counts: number of inputs by kind; indices start at 0, the valid input.
        seed: of the mutations.
        folder: for the files of the workers.
        workers: number of processes.
        failures: folder for the inputs that fail; None: they are not kept.
        journal: file of the reports, from which an interrupted run resumes; None: none.
        progress: called with the number of inputs so far, and of all.
        table: module with the table of kinds.
        seconds: after one and a half times of which a worker is killed.
    """
    outcomes = {name: Outcome() for name in counts}
    done: dict[str, set[int]] = {name: set() for name in counts}
    if journal and journal.exists():
        for line in journal.read_text().splitlines():
            report = Report(**json.loads(line))
            if report.kind in counts and report.index < counts[report.kind]:
                outcomes[report.kind].add(report)
                done[report.kind].add(report.index)
    chunks = [
        (name, [index for index in range(start, min(start + CHUNK, count)) if index not in done[name]])
        for start in range(0, max(counts.values()), CHUNK)
        for name, count in counts.items()
    ]
    lock, total = threading.Lock(), sum(counts.values())
    readers = [Reader(folder / str(number), failures, seed, table, seconds) for number in range(workers)]
    free = list(readers)

    def work(chunk: tuple[str, Iterable[int]]) -> None:
        with lock:
            reader = free.pop()
        try:
            reports = [reader.read(chunk[0], index) for index in chunk[1]]
        finally:
            with lock:
                free.append(reader)
        with lock:
            for report in reports:
                outcomes[chunk[0]].add(report)
            if journal:
                with journal.open("a") as file:
                    file.writelines(json.dumps(vars(report)) + "\n" for report in reports)
            if progress:
                progress(sum(outcome.inputs for outcome in outcomes.values()), total)

    try:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, [chunk for chunk in chunks if chunk[1]]))
    finally:
        for reader in readers:
            reader.close()
    return outcomes


def table_text(outcomes: Mapping[str, Outcome]) -> str:
    """Return the outcomes as a text, one line per kind."""
    rows: list[tuple[str, ...]] = [("kind", "inputs", "accepted", "refused", "failures", "slowest s", "memory MiB")]
    every = list(outcomes.values())
    for name, each in (*outcomes.items(), ("all", _sum(every))):
        failed = len(each.failures)
        counts = each.inputs, each.accepted, each.inputs - each.accepted, failed
        rows.append((name, *map(str, counts), f"{each.slowest:.1f}", str(each.growth_mib)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def _sum(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        sum(each.inputs for each in outcomes),
        sum(each.accepted for each in outcomes),
        max(each.slowest for each in outcomes),
        max(each.growth_mib for each in outcomes),
        [report for each in outcomes for report in each.failures],
    )


def failure_lines(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return one line per kind of input and of problem: the first such failure, and the number of the others."""
    groups: dict[tuple[str, str], list[Report]] = {}
    for report in _sum(list(outcomes.values())).failures:
        groups.setdefault((report.kind, re.sub("[0-9]+", "N", report.problems[0])[:60]), []).append(report)
    lines = []
    for (kind, _), (first, *others) in groups.items():
        more = f" and {len(others)} more" if others else ""
        changes = ", ".join(first.mutations)[:100]
        lines.append(f"{kind} #{first.index}{more}: {'; '.join(first.problems)[:300]} ({changes})")
    return lines
