"""Log of a run: `log.csv`, and TensorBoard's scalars, images and the config as text.

Events are written immediately and in this thread, because tensorboardX's own writer hangs when the disk is full.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.user_files import number, read_table, whole_number
from sam2_3dmed_jax.training.run_folder import RESUME, run_write_errors

REPAIR = "restore a copy of it, or delete it, and run the same command again"
COLUMNS = ("dice_inner", "gradient_norm", "learning_rate")  # after the losses and metrics of `losses.LOSSES`


def training_note(metrics: Mapping[str, float], batch_size: int) -> str:
    """Return the note of the progress of training: loss, Dice and speed.

    Args:
        metrics: `loss`, `dice` and `seconds` per step; `mfu` and `dice_inner` where they are known.
        batch_size: clips per step, of all processes.
    """
    seconds = metrics["seconds"]
    note = f"loss {metrics['loss']:.3f}  Dice {metrics['dice']:.2f}  {seconds:.2f} s/step"
    if seconds > 0:
        note += f"  {batch_size / seconds:.1f} clips/s"
    if "mfu" in metrics:
        note += f"  MFU {metrics['mfu']:.0%}"
    if "dice_inner" in metrics:
        note += f"  inner Dice {metrics['dice_inner']:.3f}"
    return note


class Log:
    """Writes one row per logged step, and the same values on TensorBoard. Use it as a context manager."""

    def __init__(self, run: Path, start: int, columns: Iterable[str], modules: Iterable[str], config: dict[str, Any]):
        """Open the log of a run that continues after step `start`: later rows are dropped, and later events hidden.

        Args:
            run: the run's folder.
            start: the step of the checkpoint that the run resumes from, or 0.
            columns: of losses and metrics (`objective.log_columns`).
            modules: names of the model's modules, for columns of their gradient norms and learning rates.
            config: the experiment as plain JSON values.

        Raises:
            UserError: the files cannot be written.
        """
        self._path = run / "log.csv"
        by_module = [f"{what}/{module}" for what in ("gradient_norm", "learning_rate") for module in modules]
        self._columns = ("step", "loss", *columns, *COLUMNS, *by_module, "mfu", "seconds")
        self._rows = self._read(start)
        text = io.StringIO()
        self._writer(text).writeheader()
        self._writer(text).writerows(self._rows)
        write_text(self._path, text.getvalue(), RESUME)
        with run_write_errors(self._path):
            self._file = self._path.open("a", newline="")
            # The name contains the time in seconds only; without the suffix, a run that resumes within a second would
            # overwrite the file.
            self._board = EventsWriter(str(run / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
            self._board.write_event(
                Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START))
            )
        self._event(start, summary.text("config", f"```json\n{json.dumps(config, indent=2)}\n```"))

    def best(self, name: str) -> float:
        """Return the largest value of a column in the rows up to `start`, or -inf without one."""
        where, values = f"{self._path}: {name}", (row[name] for row in self._rows if row.get(name))
        return max((number(value, where, REPAIR) for value in values), default=-np.inf)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one row, and a scalar for each value, including those without a column.

        Raises:
            UserError: the files cannot be written.
        """
        row = {"step": str(step), **{name: repr(value) for name, value in values.items() if name in self._columns}}
        with run_write_errors(self._path):
            self._writer(self._file).writerow(row)
            self._file.flush()
        for name, value in values.items():
            self._event(step, summary.scalar(name, value), flush=False)
        with run_write_errors(self._path.parent):
            self._board.flush()

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Add uint8 images `[H, W, 3]` to TensorBoard.

        Raises:
            UserError: the file cannot be written.
        """
        for name, image in images.items():
            self._event(step, summary.image(name, image, dataformats="HWC"))

    def _read(self, start: int) -> list[dict[str, str]]:
        if not os.path.lexists(self._path):
            return []
        # The last row is incomplete if the process was killed.
        rows = [(line, row) for line, row in read_table(self._path, REPAIR).rows if row.get("seconds")]
        steps = [whole_number(row.get("step", ""), f"{self._path}, line {line}: step", REPAIR) for line, row in rows]
        kept = [row for step, (_, row) in zip(steps, rows, strict=True) if step <= start]
        return [{name: row.get(name, "") for name in self._columns} for row in kept]

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns)

    def _event(self, step: int, content: Any, flush: bool = True) -> None:
        with run_write_errors(self._path.parent):
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=content))
            if flush:
                self._board.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A failed write has already been reported.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()
