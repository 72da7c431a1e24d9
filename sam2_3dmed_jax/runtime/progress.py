"""Progress of long work: the protocol of all callbacks, and a bar or plain lines on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from sam2_3dmed_jax.errors import escaped

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_EVERY = 10.0  # seconds between plain lines
SILENT_SECONDS = 2.0  # of work that may turn out to be short


class Progress(Protocol):
    """A callback that long work calls after each unit that it finishes."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Report progress.

        Args:
            what: the kind of work and its unit, such as "encoding slices"; each has its own bar.
            done: units that are finished.
            total: units in all.
            note: further text, such as the loss.
        """


class ConsoleProgress:
    """A `Progress` on stderr: a bar on a terminal, at most one line every `LINE_EVERY` seconds elsewhere.

    Both show the time left, which therefore does not belong in a note.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        """Choose between a bar and lines."""
        self._bar: Bar | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # time of the first call, and the units finished by then
        if sys.stderr.isatty():
            self._bar = _bar()

    def __enter__(self) -> ConsoleProgress:
        """Start drawing."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing; the last state stays on the screen."""
        if self._bar:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Report progress; see `Progress`."""
        if self._bar:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total, note=note)
            self._bar.update(self._tasks[what], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if what not in self._first or done <= self._first[what][1]:  # the first call, or the same work starts again
            self._first[what] = (now, done)
        if done == total or now - self._last.get(what, -LINE_EVERY) >= LINE_EVERY:
            self._last[what] = now
            line = f"{what}: {done}/{total} {note}".rstrip()
            print(escaped(line) + self._time_left(what, done, total, now), file=sys.stderr, flush=True)

    def _time_left(self, what: str, done: int, total: int, now: float) -> str:
        """Return the time left at the mean speed since the first call; empty if it is not known yet."""
        started, before = self._first[what]
        if not before < done < total:
            return ""
        return f"  {timedelta(seconds=round((now - started) / (done - before) * (total - done)))} left"


@contextlib.contextmanager
def progress_of_long_work() -> Iterator[Progress]:
    """Yield a progress that is shown when one kind of work has taken longer than `SILENT_SECONDS`."""
    starts: dict[str, float] = {}
    with ConsoleProgress() as console:

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if time.monotonic() - starts.setdefault(what, time.monotonic()) > SILENT_SECONDS:
                console(what, done, total, note)

        yield report


@contextlib.contextmanager
def console_stages(what: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the stage of some work on stderr, with the time since the start of the work.

    On a terminal the time runs; elsewhere each stage is one line.

    Args:
        what: the work.
    """
    start = time.monotonic()
    if not sys.stderr.isatty():
        yield lambda stage: print(
            f"{what}: {stage}  {timedelta(seconds=round(time.monotonic() - start))}", file=sys.stderr, flush=True
        )
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda stage: bar.update(task, description=f"{what}: {stage}")


def _bar() -> Bar:
    # Imported here, because modules that only need the protocol are imported by every command.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=Console(stderr=True))
