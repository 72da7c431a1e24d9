"""Runner of a programme: takes the next run without an owner, records failures, and writes the tables.

The same command may be started any number of times, on any machines that share the folder, and killed at any time.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import tyro

from experiments.paper import robustness
from experiments.paper.locks import owned, owner
from experiments.paper.programme import RUNS, Cell, Programme, cells, select_part
from experiments.paper.programme_tables import write_report
from sam2_3dmed_jax.commands.command_line import exit_code, start, terminated_as_interrupted
from sam2_3dmed_jax.errors import Stopped, UserError, message_line
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.progress import ConsoleProgress, Progress

DONE, FAILED = "done.json", "failed.json"
POLL = 20.0  # seconds between checks of other processes


@dataclass(frozen=True)
class Options:
    """Command-line options of all programmes."""

    out: str  # folder of runs, tables and figures
    list: bool = False  # only print the runs with their state and expected time
    tables: bool = False  # only write the tables of finished runs
    robustness: bool = False  # only sweep prompts over finished runs
    tasks: tuple[str, ...] = ()  # only these; (): all
    variants: tuple[str, ...] = ()  # only these; (): all
    folds: tuple[int, ...] = ()  # only these; (): all
    seeds: tuple[int, ...] = ()  # only these; (): all
    debug: Annotated[bool, tyro.conf.arg(help="tracebacks")] = False


def run(make_programme: Callable[[], Programme], options: Options) -> int:
    """Run a command of a programme and return the exit code.

    Args:
        make_programme: returns the programme; its `UserError` is reported like any other.
        options: the command.
    """

    def work() -> None:
        programme = make_programme()
        part = select_part(programme, options.tasks, options.variants, options.folds, options.seeds)
        out = Path(options.out)
        if options.list:
            print("\n".join(run_list(part, out)))
            return
        if not options.tables:
            start()
            with terminated_as_interrupted(), ConsoleProgress() as progress:
                if options.robustness:
                    print("\n".join(robustness.sweep(part, out, progress)))
                else:
                    part.before(progress)
                    run_cells(part, out, progress)
        print("\n".join([*write_report(programme, out), *_totals(part, out)]))
        if failed := [cell for cell in cells(part) if (cell.folder(out) / FAILED).exists()]:
            reason = json.loads((failed[0].folder(out) / FAILED).read_text())["error"]
            raise UserError(
                f"{len(failed)} runs have failed, first {failed[0].name}: {reason}; read {FAILED} in their "
                "folders, and run the same command to try them again"
            )

    return exit_code(work, options.debug, "the same command resumes from here")


def run_cells(programme: Programme, out: Path, progress: Progress) -> None:
    """Finish all cells without another owner; wait for cells of other processes that these depend on."""
    from experiments.paper.runs import CellRunner, WaitsError, is_done

    cell_runner, every = CellRunner(programme, out), cells(programme)
    tried: set[str] = set()
    while True:
        waiting, owned_by_others, progressed = 0, 0, False
        for cell in every:
            folder = cell.folder(out)
            if cell.name in tried or (is_done(cell, out) and (folder / DONE).exists()):
                continue
            with owned(folder) as mine:
                if not mine:
                    owned_by_others += 1
                    continue
                _report_progress(programme, out, cell, progress)
                begin, cpu = time.monotonic(), _cpu()
                try:
                    cell_runner.finish(cell, progress)
                except WaitsError:
                    waiting += 1
                    continue
                except (Stopped, KeyboardInterrupt):
                    raise
                except Exception as error:
                    tried.add(cell.name)
                    _record_failure(folder, error)
                    continue
                _record_done(cell, out, time.monotonic() - begin, _cpu() - cpu)
                progressed = True
        if not waiting or (not progressed and not owned_by_others):
            return
        if not progressed:
            time.sleep(POLL)


def run_list(programme: Programme, out: Path) -> Iterator[str]:
    """Yield one line per run with state, expected time and folder, then the totals."""
    every = cells(programme)
    known = _times(every, out)
    for cell in every:
        yield f"{state(cell, out):9} {_hours(expected(cell, known)):>9}  {RUNS}/{cell.name}"
    yield from _totals(programme, out)


def state(cell: Cell, out: Path) -> str:
    """Return the state of a run: done, running, failed, begun or waiting."""
    from experiments.paper.runs import is_done

    folder = cell.folder(out)
    if owner(folder):
        return "running"
    if is_done(cell, out) and (folder / DONE).exists():
        return "done"
    if (folder / FAILED).exists():
        return "failed"
    return "begun" if folder.exists() else "waiting"


def expected(cell: Cell, known: dict[tuple[str, str], list[float]]) -> float | None:
    """Estimate the CPU seconds of a run from finished ones.

    It uses the runs of the same task and variant, else of the same variant, else of the same kind, scaled by D.
    """
    same = known.get((cell.task.name, cell.variant.name)) or [
        value for (_, variant), values in known.items() if variant == cell.variant.name for value in values
    ]
    if not same:
        same = known.get(("", f"{cell.variant.kind} {cell.config.model.kind}"), [])
        slices = cell.config.data.slices if cell.config.model.kind == "sam2" else 1
        same = [value * slices for value in same]
    return sum(same) / len(same) if same else None


def _times(every: Sequence[Cell], out: Path) -> dict[tuple[str, str], list[float]]:
    """Return CPU seconds of finished runs by task and variant, and by kind, per slice of a clip."""
    known: dict[tuple[str, str], list[float]] = {}
    for cell in every:
        try:
            seconds = float(json.loads((cell.folder(out) / DONE).read_text())["cpu_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        known.setdefault((cell.task.name, cell.variant.name), []).append(seconds)
        slices = cell.config.data.slices if cell.config.model.kind == "sam2" else 1
        known.setdefault(("", f"{cell.variant.kind} {cell.config.model.kind}"), []).append(seconds / slices)
    return known


def _totals(programme: Programme, out: Path) -> list[str]:
    every = cells(programme)
    known = _times(every, out)
    states = [state(cell, out) for cell in every]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    lines = [f"{len(every)} runs: {counts}"]
    times = {cell.name: expected(cell, known) for cell in every}
    if any(times.values()):
        left = [times[cell.name] for cell, now in zip(every, states, strict=True) if now != "done"]
        unknown = sum(value is None for value in left)
        without = f", without {unknown} runs for which no time is known" if unknown else ""
        whole = sum(value or 0 for value in times.values())
        lines.append(
            f"CPU time: {_hours(whole)} in all, {_hours(sum(value or 0 for value in left))} left{without}; estimated "
            "from finished runs"
        )
    return lines


def _report_progress(programme: Programme, out: Path, cell: Cell, progress: Progress) -> None:
    """Report the finished runs of the programme and an estimate of the CPU time left."""
    every = cells(programme)
    states = [state(other, out) for other in every]
    known = _times(every, out)
    left = [expected(other, known) for other, now in zip(every, states, strict=True) if now != "done"]
    note = cell.name
    if any(left):
        mean = sum(value for value in left if value) / sum(value is not None for value in left)
        note += f", {_hours(sum(mean if value is None else value for value in left))} of CPU left"
    progress("runs", states.count("done"), len(every), note)


def _record_done(cell: Cell, out: Path, seconds: float, cpu: float) -> None:
    folder = cell.folder(out)
    (folder / FAILED).unlink(missing_ok=True)
    try:  # add the time of earlier attempts
        before = json.loads((folder / DONE).read_text())
    except (OSError, ValueError):
        before = {}
    entry = {
        "config_hash": cell.config_hash,
        "seconds": before.get("seconds", 0.0) + seconds,
        "cpu_seconds": before.get("cpu_seconds", 0.0) + cpu,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.node()}, {os.cpu_count()} cores {platform.machine()}",
    }
    write_text(folder / DONE, json.dumps(entry, indent=2) + "\n")


def _record_failure(folder: Path, error: Exception) -> None:
    print(f"error: {folder.name}: {message_line(error)}", file=sys.stderr)
    entry = {
        "error": f"{type(error).__name__}: {' '.join(str(error).split())}",
        "traceback": traceback.format_exception(error),
    }
    write_text(folder / FAILED, json.dumps(entry, indent=2) + "\n")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _hours(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
