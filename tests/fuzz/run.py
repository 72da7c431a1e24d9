"""The long run of the fuzzer: `python -m tests.fuzz.run --inputs 20000 --seed 1`, which writes `tests/fuzz/logs/`."""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.harness import failure_lines, run, shares, table_text
from tests.fuzz.kinds import KINDS
from tests.fuzz.worker import GROWTH, SECONDS, VOLUME_GIB

PROGRESS_SECONDS = 30
LOGS = Path(__file__).parent / "logs"


def main() -> int:
    """Run, print the table and return 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", help="names of kinds (default: all)")
    parser.add_argument("--failures", type=Path, help="folder for the inputs that fail")
    parser.add_argument("--journal", type=Path, help="file from which an interrupted run resumes")
    parser.add_argument("--log", type=Path, help="file for the table")
    options = parser.parse_args()
    chosen = [kind for kind in KINDS if not options.kinds or kind.name in options.kinds]
    counts, start = shares(options.inputs, chosen), time.monotonic()

    last = start

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"{done} of {total} inputs, {last - start:.0f} s", file=sys.stderr, flush=True)

    done = len(options.journal.read_text().splitlines()) if options.journal and options.journal.exists() else 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        outcomes = run(counts, options.seed, Path(folder), options.workers, options.failures, options.journal, progress)
    text = "\n".join(
        [
            *_header(options, time.monotonic() - start, done),
            "",
            table_text(outcomes),
            "",
            *_left_out(chosen),
            *failure_lines(outcomes),
        ]
    )
    print(text)
    if options.log:
        options.log.write_text(text.rstrip() + "\n")
    return int(any(outcome.failures for outcome in outcomes.values()))


def _header(options: argparse.Namespace, seconds: float, done: int) -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return [
        f"{datetime.date.today()}, commit {commit}{' with changes' if dirty else ''}, {machine}, {_processor()}",
        f"--inputs {options.inputs} --seed {options.seed} --workers {options.workers}: {seconds / 60:.0f} minutes",
        *([f"{done} of the inputs were read before the run was interrupted"] if done else []),
        f"limits: {SECONDS:.0f} s, {GROWTH >> 30} GiB on top of a volume of {VOLUME_GIB} GiB",
    ]


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"


def _left_out(kinds: list) -> list[str]:
    return [f"left out: {kind.name}, which needs {kind.needs}" for kind in kinds if not kind.is_available]


if __name__ == "__main__":
    sys.exit(main())
