"""A loss that is not finite, or explodes, stops the run; the batch that gave it is saved for replay.

Losses stay on the devices until they are looked at, at every logged step and before anything is saved, so that no step
waits for the host; then each step's is known. Batches are not kept: batch i is a function of the seed and i, and is cut
again.
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
from sam2_3dmed_jax.runtime.disk import writing
from sam2_3dmed_jax.training.checkpoint import restore
from sam2_3dmed_jax.training.setup import Setup

WINDOW = 100  # steps whose median an exploding loss is measured by
ENOUGH = 20  # of them, before which it is not; they are counted anew in a resumed run
FAILED = "failed"  # in a run's folder


class LossGuard:
    """Looks at every step's loss and gradient norm, a few steps late."""

    def __init__(self, run: Path, batches: Sequence[Mapping[str, np.ndarray]], limit: float):
        """`batches[i]` is that of step i + 1, this process's part; `limit` is `training.loss_limit`."""
        self._run, self._batches, self._limit = run, batches, limit
        self._pending: list[tuple[int, jax.Array, jax.Array]] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Note a step's metrics, without waiting for them."""
        self._pending.append((step, metrics["loss"], metrics["gradient_norm"]))

    def check(self) -> None:
        """Look at the steps since the last check.

        Raises:
            UserError: a loss or gradient that is not finite, or a loss over the limit; its batch is saved.
        """
        steps, self._pending = jax.device_get(self._pending), []
        for step, loss, norm in steps:
            if not math.isfinite(loss):
                self._stop(step, f"the loss is {loss}", "lower training.learning_rate or raise training.warmup_steps")
            if not math.isfinite(norm):
                self._stop(
                    step, f"the gradient is {norm}", "lower training.learning_rate or raise training.warmup_steps"
                )
            if self._limit and len(self._recent) >= ENOUGH:
                median = statistics.median(self._recent)
                if loss > self._limit * median:
                    self._stop(
                        step,
                        f"the loss is {loss:.4g}, more than {self._limit:g} times the last ones' median {median:.4g},",
                        "lower training.learning_rate, or raise training.loss_limit to go on in the same folder",
                    )
            self._recent.append(float(loss))

    def _stop(self, step: int, what: str, mend: str) -> None:
        part = f"_process_{jax.process_index()}" if distributed.several() else ""
        file = self._run / FAILED / f"step_{step}{part}.npz"
        temporary = file.with_name(f".{file.stem}.tmp.npz")
        with writing(file):
            file.parent.mkdir(exist_ok=True)
            np.savez(temporary, **self._batches[step - 1])  # type: ignore[arg-type]
            temporary.rename(file)
        raise UserError(f"{self._run}: {what} at step {step}; {mend}, and start in another folder (batch: {file})")


def replay(run: Path, setup: Setup, file: Path) -> dict[str, float]:
    """Take one step from the run's newest checkpoint (or its first weights) on a saved batch.

    The weights are those of that checkpoint, not of the step before the one that failed: to have those, resume the run,
    which meets the same batch with the same weights again.

    Args:
        run: the run's folder, which is left as it is.
        setup: of the same experiment (`set_up`); it cannot be used again.
        file: `run/failed/step_N.npz`.

    Returns:
        The step's metrics: `loss`, its parts, `gradient_norm`, ...

    Raises:
        UserError: the file holds no batch, or all checkpoints are damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            batch = dict(stored)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} holds no batch ({error}); give RUN/{FAILED}/step_N.npz") from error
    state, _, _ = restore(run / "checkpoints", setup.state)
    _, metrics = setup.step(state, setup.frozen, jax.device_put(batch, setup.sharding))
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
