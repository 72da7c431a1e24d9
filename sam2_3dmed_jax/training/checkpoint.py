"""Checkpoints of a run (Orbax, asynchronous, atomic): weights, optimizer, averaged weights and the step.

The step is also the state of the data, the count of consumed batches: batch i is a function of the seed and i. The
train step draws nothing at random, so that there is no other state to keep. Beside what Orbax writes stands
`sums.json`, size and SHA-256 of each file: Orbax notices many a damage, with pages of tracebacks, but loads numbers
with flipped bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.disk import write_whole, writing
from sam2_3dmed_jax.training.step import TrainState

SUMS = "sums.json"
DAMAGED = "damaged"  # in a run's folder: checkpoints that were passed over

log = logging.getLogger(__name__)


class Checkpoints:
    """Writes the checkpoints in a run's folder, and keeps the newest few. A context manager: leaving it waits."""

    def __init__(self, folder: str | os.PathLike[str], keep: int):
        self._folder = Path(os.path.abspath(folder))
        with writing(self._folder):
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )
        self._pool = ThreadPoolExecutor(1)
        self._writing: tuple[int, Future] | None = None

    def save(self, state: TrainState, step: int) -> None:
        """Start writing a checkpoint; the state may be donated as soon as this returns.

        Raises:
            UserError: this one or the one before cannot be written.
        """
        self.wait()
        with writing(self._folder / str(step)):
            # A copy: on CPU the writer would share memory with buffers that the next step overwrites.
            response = self._checkpointer.save_async(
                step, jax.tree.map(jnp.copy, _tree(state)), force=True, overwrite=True
            )
        assert response is not None  # it is of no step that is there

        def finish() -> None:
            response.result()
            if distributed.is_first():
                _write_sums(self._folder / str(step))

        self._writing = step, self._pool.submit(finish)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            UserError: it cannot be.
        """
        if self._writing is not None:
            (step, done), self._writing = self._writing, None
            with writing(self._folder / str(step)):
                done.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
            with writing(self._folder):
                self._checkpointer.close()
        except UserError:
            if kind is None:  # else what went wrong first is told
                raise
        finally:
            self._pool.shutdown()


def restore(folder: str | os.PathLike[str], state: TrainState) -> tuple[TrainState, int, dict[int, str]]:
    """The newest undamaged checkpoint, placed like `state`. It changes nothing on disk.

    Returns:
        The restored state and its step, `state` itself and 0 when there is no checkpoint; and the steps of newer,
        damaged checkpoints with what is wrong with each.

    Raises:
        UserError: all checkpoints are damaged, or one was written by another version.
    """
    folder = Path(os.path.abspath(folder))
    there = sorted((int(path.name) for path in folder.glob("*") if path.name.isdigit()), reverse=True)
    damaged: dict[int, str] = {}
    for step in there:
        reason = _damage(folder / str(step))
        if not reason:
            try:
                return _load(folder / str(step), state), step, damaged
            except Exception as error:  # Orbax raises many kinds
                if (folder / str(step) / SUMS).exists():  # it is as it was written
                    raise UserError(
                        f"{folder / str(step)} is whole, but not of this version ({type(error).__name__}); resume with "
                        "the version that wrote it, or choose another --out"
                    ) from error
                reason = f"it cannot be read ({type(error).__name__})"
        damaged[step] = reason
    if damaged:
        found = ", ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise UserError(f"{folder}: every checkpoint is damaged ({found}); bring a copy back, or choose another --out")
    return state, 0, {}


def set_aside(folder: Path, damaged: dict[int, str], used: int) -> None:
    """Move damaged checkpoints out of the way of those to come, to `damaged/` beside the folder; each is warned of."""
    for step, reason in damaged.items():
        aside = folder.parent / DAMAGED / str(step)
        log.warning(
            "%s is damaged (%s) and moved to %s; the run goes on from step %d", folder / str(step), reason, aside, used
        )
        with writing(aside):
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            (folder / str(step)).rename(aside)


def _load(path: Path, state: TrainState) -> TrainState:
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(state))
    stored = ocp.load(path, abstract)
    optimizer = jax.tree.unflatten(jax.tree.structure(state.optimizer), stored["optimizer"])
    return TrainState(stored["weights"], optimizer, stored["step"], stored["ema"])


def _tree(state: TrainState) -> dict:
    """A state as plain containers: optax's named tuples are not a stable format."""
    optimizer = jax.tree.leaves(state.optimizer)
    return {"weights": state.weights, "optimizer": optimizer, "step": state.step, "ema": state.ema}


def _files(folder: Path) -> dict[str, Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and SUMS not in path.name)
    return {path.relative_to(folder).as_posix(): path for path in sorted(files)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_sums(folder: Path) -> None:
    sums = {name: [path.stat().st_size, _sha256(path)] for name, path in _files(folder).items()}
    write_whole(folder / SUMS, json.dumps(sums, indent=1))


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint, by its sums; "" if nothing, or if the process died before it wrote them."""
    try:
        sums = json.loads((folder / SUMS).read_text())
        files = _files(folder)
        for name, (size, sha256) in sums.items():
            if name not in files:
                return f"{name} is missing"
            if files[name].stat().st_size != size:
                return f"{name} has {files[name].stat().st_size} bytes of {size}"
            if _sha256(files[name]) != sha256:
                return f"{name} has changed"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{SUMS} cannot be read ({type(error).__name__})"
    return ""
