"""What a run says of itself: `log.csv`, and TensorBoard's scalars, images and the config as text.

Events are written at once and in this thread, so that a full disk is noticed: tensorboardX's own writer hangs on one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sam2_3dmed_jax.runtime.disk import write_whole, writing

COLUMNS = ("dice", "dice_inner", "gradient_norm", "learning_rate")  # after the losses


class Log:
    """One row a logged step, and the same on TensorBoard. A context manager."""

    def __init__(self, run: Path, start: int, losses: Iterable[str], modules: Iterable[str], config: dict[str, Any]):
        """Open the log of a run that goes on after step `start`: rows past it are dropped, events hidden.

        Args:
            run: its folder.
            start: the step of the checkpoint that it resumes from, or 0.
            losses: names of the loss's terms, for columns.
            modules: names of the model's parts, for columns of their gradient norms and learning rates.
            config: the experiment as JSON holds it.

        Raises:
            UserError: the files cannot be written.
        """
        self._path = run / "log.csv"
        by_module = [f"{what}/{module}" for what in ("gradient_norm", "learning_rate") for module in modules]
        self._columns = ("step", "loss", *losses, *COLUMNS, *by_module, "mfu", "seconds")
        self._rows = self._read(start)
        text = io.StringIO()
        self._writer(text).writeheader()
        self._writer(text).writerows(self._rows)
        write_whole(self._path, text.getvalue())
        with writing(self._path):
            self._file = self._path.open("a", newline="")
            # The writer names its file by the second, and would overwrite that of a run resumed within it.
            self._board = EventsWriter(str(run / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
            self._board.write_event(
                Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START))
            )
        self._event(start, summary.text("config", f"```json\n{json.dumps(config, indent=2)}\n```"))

    def best(self, name: str) -> float:
        """The largest value of a column in the rows up to `start`; -inf when there is none."""
        return max((float(row[name]) for row in self._rows if row.get(name)), default=-np.inf)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one row, and a scalar for each value (those without a column too).

        Raises:
            UserError: the files cannot be written.
        """
        row = {"step": str(step), **{name: repr(value) for name, value in values.items() if name in self._columns}}
        with writing(self._path):
            self._writer(self._file).writerow(row)
            self._file.flush()
        for name, value in values.items():
            self._event(step, summary.scalar(name, value), flush=False)
        with writing(self._path.parent):
            self._board.flush()

    def images(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Show uint8 pictures `[H, W, 3]` on TensorBoard.

        Raises:
            UserError: the file cannot be written.
        """
        for name, picture in pictures.items():
            self._event(step, summary.image(name, picture, dataformats="HWC"))

    def _read(self, start: int) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            # A kill may have left part of a row at the end.
            rows = [row for row in csv.DictReader(file) if row.get("seconds")]
        return [{name: row.get(name) or "" for name in self._columns} for row in rows if int(row["step"]) <= start]

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns)

    def _event(self, step: int, content: Any, flush: bool = True) -> None:
        with writing(self._path.parent):
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=content))
            if flush:
                self._board.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What could not be written has been told.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()
