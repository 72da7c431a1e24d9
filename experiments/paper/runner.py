"""Works off a programme: takes the next run that nobody owns, records one that fails, goes on, and writes the tables.

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
from experiments.paper.programme import RUNS, Cell, Programme, cells, chosen
from experiments.paper.tables import write_report
from sam2_3dmed_jax.commands.command_line import exit_code, start, terminated_as_interrupted
from sam2_3dmed_jax.errors import Stopped, UserError
from sam2_3dmed_jax.runtime.disk import write_whole
from sam2_3dmed_jax.runtime.progress import ConsoleProgress

DONE, FAILED = "done.json", "failed.json"
POLL = 20.0  # seconds between looks at what other processes do


@dataclass(frozen=True)
class Options:
    """What of a programme to do, and where."""

    out: str  # folder of runs, tables and figures
    list: bool = False  # print the runs with their state and expected time, and do nothing
    tables: bool = False  # write the tables of what is done, and do nothing else
    robustness: bool = False  # sweep prompts over the runs that are done, and train nothing
    tasks: tuple[str, ...] = ()  # only these; (): all
    variants: tuple[str, ...] = ()  # only these; (): all
    folds: tuple[int, ...] = ()  # only these; (): all
    seeds: tuple[int, ...] = ()  # only these; (): all
    debug: Annotated[bool, tyro.conf.arg(help="tracebacks")] = False


def run(made: Callable[[], Programme], options: Options) -> int:
    """Do what the options ask for with the programme that is made; returns the exit code."""

    def work() -> None:
        programme = made()
        part = chosen(programme, options.tasks, options.variants, options.folds, options.seeds)
        out = Path(options.out)
        if options.list:
            print("\n".join(listed(part, out)))
            return
        if not options.tables:
            start()
            with terminated_as_interrupted(), ConsoleProgress() as progress:
                if options.robustness:
                    print("\n".join(robustness.sweep(part, out, progress)))
                else:
                    part.before(progress)
                    work_off(part, out, progress)
        print("\n".join([*write_report(programme, out), *_sum(part, out)]))
        if failed := [cell for cell in cells(part) if (cell.folder(out) / FAILED).exists()]:
            told = json.loads((failed[0].folder(out) / FAILED).read_text())["error"]
            raise UserError(
                f"{len(failed)} runs have failed, first {failed[0].name}: {told}; {FAILED} in their folders has the "
                "rest, and the same command tries them again"
            )

    return exit_code(work, options.debug, "the same command goes on from here")


def work_off(programme: Programme, out: Path, progress: ConsoleProgress) -> None:
    """Finish all cells that this process can get hold of; waits for those that others work on and it depends on."""
    from experiments.paper.runs import WaitsError, Workshop, is_done

    workshop, every = Workshop(programme, out), cells(programme)
    tried: set[str] = set()
    while True:
        waiting, elsewhere, moved = 0, 0, False
        for cell in every:
            folder = cell.folder(out)
            if cell.name in tried or (is_done(cell, out) and (folder / DONE).exists()):
                continue
            with owned(folder) as mine:
                if not mine:
                    elsewhere += 1
                    continue
                _tell(programme, out, cell, progress)
                begin, cpu = time.monotonic(), _cpu()
                try:
                    workshop.finish(cell, progress)
                except WaitsError:
                    waiting += 1
                    continue
                except (Stopped, KeyboardInterrupt):
                    raise
                except Exception as error:
                    tried.add(cell.name)
                    _fail(folder, error)
                    continue
                _done(cell, out, time.monotonic() - begin, _cpu() - cpu)
                moved = True
        if not waiting or (not moved and not elsewhere):
            return
        if not moved:
            time.sleep(POLL)


def listed(programme: Programme, out: Path) -> Iterator[str]:
    """A line a run: state, expected time, folder; then the whole."""
    every = cells(programme)
    known = _times(every, out)
    for cell in every:
        yield f"{state(cell, out):9} {_hours(expected(cell, known)):>9}  {RUNS}/{cell.name}"
    yield from _sum(programme, out)


def state(cell: Cell, out: Path) -> str:
    """In a word: done, running, failed, begun or waiting."""
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
    """CPU seconds of a run, from finished ones: of its task and variant, of its variant, or of its kind by its D."""
    same = known.get((cell.task.name, cell.variant.name)) or [
        value for (_, variant), values in known.items() if variant == cell.variant.name for value in values
    ]
    if not same:
        same = known.get(("", f"{cell.variant.kind} {cell.config.model.kind}"), [])
        slices = cell.config.data.slices if cell.config.model.kind == "sam2" else 1
        same = [value * slices for value in same]
    return sum(same) / len(same) if same else None


def _times(every: Sequence[Cell], out: Path) -> dict[tuple[str, str], list[float]]:
    """CPU seconds of finished runs by task and variant; and by kind, a slice of a clip."""
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


def _sum(programme: Programme, out: Path) -> list[str]:
    every = cells(programme)
    known = _times(every, out)
    states = [state(cell, out) for cell in every]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    lines = [f"{len(every)} runs: {counts}"]
    times = {cell.name: expected(cell, known) for cell in every}
    if any(times.values()):
        left = [times[cell.name] for cell, told in zip(every, states, strict=True) if told != "done"]
        unknown = sum(value is None for value in left)
        without = f", without {unknown} runs of which none has been timed" if unknown else ""
        whole = sum(value or 0 for value in times.values())
        lines.append(
            f"CPU time: {_hours(whole)} in all, {_hours(sum(value or 0 for value in left))} left{without}; from runs "
            "that are done"
        )
    return lines


def _tell(programme: Programme, out: Path, cell: Cell, progress: ConsoleProgress) -> None:
    """How far the programme is, in wall time of as many processes as work on it."""
    every = cells(programme)
    states = [state(other, out) for other in every]
    known = _times(every, out)
    left = [expected(other, known) for other, told in zip(every, states, strict=True) if told != "done"]
    note = cell.name
    if any(left):
        mean = sum(value for value in left if value) / sum(value is not None for value in left)
        note += f", {_hours(sum(mean if value is None else value for value in left))} of CPU left"
    progress("runs", states.count("done"), len(every), note)


def _done(cell: Cell, out: Path, seconds: float, cpu: float) -> None:
    folder = cell.folder(out)
    (folder / FAILED).unlink(missing_ok=True)
    try:  # a run that was killed has spent more
        before = json.loads((folder / DONE).read_text())
    except (OSError, ValueError):
        before = {}
    told = {
        "config_hash": cell.digest,
        "seconds": before.get("seconds", 0.0) + seconds,
        "cpu_seconds": before.get("cpu_seconds", 0.0) + cpu,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.node()}, {os.cpu_count()} cores {platform.machine()}",
    }
    write_whole(folder / DONE, json.dumps(told, indent=2) + "\n")


def _fail(folder: Path, error: Exception) -> None:
    text = " ".join(str(error).split())
    print(f"error: {folder.name}: {text}", file=sys.stderr)
    told = {"error": f"{type(error).__name__}: {text}", "traceback": traceback.format_exception(error)}
    write_whole(folder / FAILED, json.dumps(told, indent=2) + "\n")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _hours(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
