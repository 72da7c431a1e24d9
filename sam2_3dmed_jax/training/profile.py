"""Profiling: an xprof trace of a few steps, in the run's folder, where TensorBoard's profile plugin finds it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import jax

WARM = 2  # steps of this process before the trace; the first one includes compilation


class Profile:
    """Traces some steps of a run, from the third step of this process on. Use it as a context manager."""

    def __init__(self, run: Path, start: int, steps: int):
        """`start` is the number of finished steps; `steps` is the number of steps to trace, 0 for none."""
        self._run, self._first, self._steps, self._on = run, start + WARM, steps, False

    def after_step(self, done: int, state: Any) -> None:
        """Start or stop the trace after step `done`, whose result is `state`."""
        if self._steps and done == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._run)
            self._on = True
        elif self._on and done == self._first + self._steps:
            self._stop(state)

    def _stop(self, state: Any = None) -> None:
        jax.block_until_ready(state)
        self._on = False
        jax.profiler.stop_trace()

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._on:
            self._stop()
