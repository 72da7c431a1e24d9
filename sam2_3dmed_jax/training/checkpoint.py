"""Checkpoints of a run (Orbax, asynchronous, atomic): weights, optimizer and the count of consumed batches.

The count is also the state of the data: batch i is a function of the seed and i.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from sam2_3dmed_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints in a run's folder, the newest few of them."""

    def __init__(self, folder: str | os.PathLike[str], keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            os.path.abspath(folder),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, step: int) -> None:
        """Start writing a checkpoint; the state may be donated as soon as this returns."""
        # A copy: on CPU the writer would share memory with buffers that the next step overwrites.
        self._checkpointer.save_async(step, jax.tree.map(jnp.copy, _tree(state)), overwrite=True)

    def restore(self, state: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint, placed like `state`, and its step; `state` itself and 0 when there is none."""
        latest = self._checkpointer.latest
        if latest is None:
            return state, 0
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(state))
        stored = self._checkpointer.load(latest.step, abstract)
        optimizer = jax.tree.unflatten(jax.tree.structure(state.optimizer), stored["optimizer"])
        return TrainState(stored["weights"], optimizer, stored["step"], stored["ema"]), latest.step

    def close(self) -> None:
        """Wait until all is written."""
        self._checkpointer.close()


def _tree(state: TrainState) -> dict:
    """A state as plain containers: optax's named tuples are not a stable format."""
    optimizer = jax.tree.leaves(state.optimizer)
    return {"weights": state.weights, "optimizer": optimizer, "step": state.step, "ema": state.ema}
