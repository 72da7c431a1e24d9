"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY = 10.0  # seconds between plain lines


class ConsoleProgress:
    """A callable `(what, done, total, note)` for long work; use as a context manager."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))

    def __enter__(self) -> ConsoleProgress:
        """Start drawing."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing; the last state stays on screen."""
        if self._bar:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Say how far `what` is."""
        if self._bar:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total, note=note)
            self._bar.update(self._tasks[what], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if done == total or now - self._last.get(what, -LINE_EVERY) >= LINE_EVERY:
            self._last[what] = now
            print(f"{what}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    def training(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """The progress of `training.loop.train`."""
        seconds = metrics["seconds"]
        note = f"loss {metrics['loss']:.3f}  Dice {metrics['dice']:.2f}  {seconds:.2f} s/step"
        if seconds > 0:
            note += f"  {metrics['batch_size'] / seconds:.1f} clips/s"
        if "mfu" in metrics:
            note += f"  MFU {metrics['mfu']:.0%}"
        if "dice_inner" in metrics:
            note += f"  inner Dice {metrics['dice_inner']:.3f}"
        if not self._bar:  # which shows it by itself
            note += f"  {timedelta(seconds=round(seconds * (total - done)))} left"
        self("training", done, total, note)
