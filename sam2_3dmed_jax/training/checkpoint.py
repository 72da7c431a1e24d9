"""Checkpoints of a run (Orbax, asynchronous, atomic): weights, optimizer, averaged weights and the step.

The step is also the state of the data, because batch i is a function of the seed and i; the train step has no random
numbers. In addition to Orbax's files, a checkpoint contains `sums.json`, the size and SHA-256 of each file: Orbax
detects missing and truncated files, but not flipped bits in numbers.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from sam2_3dmed_jax.errors import UserError, cut, listed
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.foreign_errors import foreign
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.runtime.user_files import read_json, typed
from sam2_3dmed_jax.training.run_folder import RESUME, checkpoint_steps, run_write_errors
from sam2_3dmed_jax.training.step import TrainState

SUMS = "sums.json"
DAMAGED = "damaged"  # folder in a run's folder, for damaged checkpoints

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """The newest undamaged checkpoint of a run."""

    state: TrainState
    step: int  # 0 without a checkpoint
    damaged: dict[int, str]  # the damage of each newer checkpoint, by step


class Checkpoints:
    """Writes the checkpoints of a run and keeps the newest ones. A context manager, which waits at its end."""

    def __init__(self, folder: str | os.PathLike[str], keep: int):
        self._folder = Path(os.path.abspath(folder))
        with run_write_errors(self._folder):
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )
        self._pool = ThreadPoolExecutor(1)
        self._writing: tuple[int, Future] | None = None

    def save(self, state: TrainState, step: int) -> None:
        """Start writing a checkpoint. The state may be donated afterwards.

        Raises:
            UserError: this checkpoint or the previous one cannot be written.
        """
        self.wait()
        with run_write_errors(self._folder / str(step)):
            # On CPU the writer would share memory with buffers that the next step overwrites, so it gets a copy.
            response = self._checkpointer.save_async(
                step, jax.tree.map(jnp.copy, _tree(state)), force=True, overwrite=True
            )
        assert response is not None  # `force` writes every step

        def finish() -> None:
            response.result()
            if distributed.is_first_process():
                _write_sums(self._folder / str(step))

        self._writing = step, self._pool.submit(finish)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            UserError: it cannot be written.
        """
        if self._writing is not None:
            (step, done), self._writing = self._writing, None
            with run_write_errors(self._folder / str(step)):
                done.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
            with run_write_errors(self._folder):
                self._checkpointer.close()
        except UserError:
            if kind is None:  # otherwise the first error is the one to report
                raise
        finally:
            self._pool.shutdown()


def restore(folder: str | os.PathLike[str], state: TrainState) -> Restored:
    """Return the newest undamaged checkpoint, placed like `state`, or `state` itself without one.

    It changes nothing on disk.

    Raises:
        UserError: all checkpoints are damaged, or one was written by another version.
    """
    folder = Path(os.path.abspath(folder))
    steps = sorted(checkpoint_steps(folder), reverse=True)
    damaged: dict[int, str] = {}
    for step in steps:
        reason = _damage(folder / str(step))
        if not reason:
            try:
                with foreign("orbax", str):
                    return Restored(_load(folder / str(step), state), step, damaged)
            except UserError as error:
                if (folder / str(step) / SUMS).exists():  # its files are undamaged
                    raise UserError(
                        f"{folder / str(step)} is undamaged, but this version cannot read it ({error}); resume with "
                        "the version that wrote it, or choose another --out"
                    ) from error
                reason = f"it cannot be read ({cut(str(error), 80)})"
        damaged[step] = reason
    if damaged:
        reasons = listed([f"{step}: {reason}" for step, reason in damaged.items()])
        raise UserError(f"{folder}: every checkpoint is damaged ({reasons}); restore a copy, or choose another --out")
    return Restored(state, 0, {})


def set_aside(folder: Path, damaged: dict[int, str], used: int) -> None:
    """Move damaged checkpoints to `damaged/` in the run's folder, each with a warning.

    Args:
        folder: of the checkpoints.
        damaged: the damage by step.
        used: the step that the run resumes from.
    """
    for step, reason in damaged.items():
        aside = folder.parent / DAMAGED / str(step)
        log.warning(
            "%s is damaged (%s) and moved to %s; the run resumes from step %d", folder / str(step), reason, aside, used
        )
        with run_write_errors(aside):
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            (folder / str(step)).rename(aside)


def _load(path: Path, state: TrainState) -> TrainState:
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(state))
    stored = ocp.load(path, abstract)
    optimizer = jax.tree.unflatten(jax.tree.structure(state.optimizer), stored["optimizer"])
    return TrainState(stored["weights"], optimizer, stored["step"], stored["ema"])


def _tree(state: TrainState) -> dict:
    """Return a state as plain containers, because optax's named tuples are not a stable format."""
    optimizer = jax.tree.leaves(state.optimizer)
    return {"weights": state.weights, "optimizer": optimizer, "step": state.step, "ema": state.ema}


def _files(folder: Path) -> dict[str, Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and SUMS not in path.name)
    return {path.relative_to(folder).as_posix(): path for path in sorted(files)}


def _write_sums(folder: Path) -> None:
    sums = {name: [path.stat().st_size, sha256_of_file(path)] for name, path in _files(folder).items()}
    write_text(folder / SUMS, json.dumps(sums, indent=1), RESUME)


def _damage(folder: Path) -> str:
    """Return the damage of a checkpoint by its sums; "" without damage, or if the process died before it wrote them."""
    if not os.path.lexists(folder / SUMS):
        return ""
    try:
        sums = typed(read_json(folder / SUMS, ""), dict[str, tuple[int, str]], SUMS, "")
        files = _files(folder)
        for name, (size, sha256) in sums.items():
            if name not in files:
                return f"{name} is missing"
            if files[name].stat().st_size != size:
                return f"{name} has {files[name].stat().st_size} bytes of {size}"
            if sha256_of_file(files[name]) != sha256:
                return f"{name} has changed"
    except (OSError, UserError) as error:
        return f"{SUMS} cannot be read ({type(error).__name__})"
    return ""
