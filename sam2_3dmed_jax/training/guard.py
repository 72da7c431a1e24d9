"""Loss guard: stops a run whose loss is not finite or explodes, and saves the batch of that step.

Losses stay on the devices until the next check, at every logged step and before anything is saved, so that no step
waits for the host. A check covers every step since the last one. The batch is computed again, because batch i is a
function of the seed and i.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.training.run_folder import RESUME

WINDOW = 100  # a loss explodes relative to the median of this many previous steps
MIN_STEPS = 20  # steps of this process before the median counts
FAILED = "failed"  # folder in a run's folder
LOWER_RATE = "lower training.learning_rate or raise training.warmup_steps"


class LossGuard:
    """Checks the loss and gradient norm of every step, some steps later."""

    def __init__(self, run: Path, batches: Sequence[Mapping[str, np.ndarray]], limit: float):
        """`batches[i]` is this process's part of the batch of step i + 1; `limit` is `training.loss_limit`."""
        self._run, self._batches, self._limit = run, batches, limit
        self._pending: list[tuple[int, jax.Array, jax.Array]] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Add a step's metrics, without waiting for them."""
        self._pending.append((step, metrics["loss"], metrics["gradient_norm"]))

    def check(self) -> None:
        """Check the steps since the last check.

        Raises:
            UserError: a loss or gradient that is not finite, or a loss over the limit; its batch is saved.
        """
        steps, self._pending = jax.device_get(self._pending), []
        for step, loss, norm in steps:
            if not math.isfinite(loss):
                self._stop(step, f"the loss is {loss}", LOWER_RATE)
            if not math.isfinite(norm):
                self._stop(step, f"the gradient is {norm}", LOWER_RATE)
            if self._limit and len(self._recent) >= MIN_STEPS:
                median = statistics.median(self._recent)
                if loss > self._limit * median:
                    self._stop(
                        step,
                        f"the loss is {loss:.4g}, more than {self._limit:g} times the recent median {median:.4g},",
                        "lower training.learning_rate, or raise training.loss_limit to resume in the same folder",
                    )
            self._recent.append(float(loss))

    def _stop(self, step: int, problem: str, fix: str) -> None:
        part = f"_process_{jax.process_index()}" if distributed.is_distributed() else ""
        file = self._run / FAILED / f"step_{step}{part}.npz"
        with atomic_path(file, ".npz", RESUME) as temporary:
            np.savez(temporary, **self._batches[step - 1])  # type: ignore[arg-type]
        raise UserError(f"{self._run}: {problem} at step {step}; {fix}, and start in another folder (batch: {file})")
