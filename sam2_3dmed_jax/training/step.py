"""The train step: one jitted, donated function from state and batch to state and metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.training.objective import objective
from sam2_3dmed_jax.training.optimizer import Optimizer, learning_rate
from sam2_3dmed_jax.training.sharding import weight_shardings
from sam2_3dmed_jax.training.walk import walk_clips


class TrainState(NamedTuple):
    """All that changes from step to step; frozen weights stand beside it."""

    weights: Weights
    optimizer: optax.OptState
    step: jax.Array  # int32: batches consumed


Step = jax.stages.Wrapped | jax.stages.Compiled  # (state, frozen weights, batch) -> (state, metrics)


def init_state(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> TrainState:
    """Trained weights on the mesh, and an optimizer state sharded like them."""
    shardings = weight_shardings(mesh, weights)
    # A copy, since the step donates its state.
    placed = {path: jax.device_put(jnp.array(value), shardings[path]) for path, value in weights.items()}
    optimizer = Optimizer(config.training, placed)
    state = jax.jit(optimizer.init, out_shardings=optimizer.shardings(placed, mesh))(placed)
    step = jax.device_put(jnp.zeros((), jnp.int32), NamedSharding(mesh, P()))
    return TrainState(placed, state, step)


def make_step(config: ExperimentConfig, graphdef: nnx.GraphDef, weights: Weights, mesh: Mesh) -> jax.stages.Wrapped:
    """Compile-ready train step of an experiment. Frozen weights are an argument without gradient or optimizer state."""
    optimizer = Optimizer(config.training, weights)
    state_shardings: Any = TrainState(  # of shardings, in the shape of a state
        weight_shardings(mesh, weights),  # type: ignore[arg-type]
        optimizer.shardings(weights, mesh),
        NamedSharding(mesh, P()),  # type: ignore[arg-type]
    )

    def loss(weights: Weights, frozen: Weights, batch: dict, step: jax.Array) -> tuple[jax.Array, dict]:
        model = merge(graphdef, {**frozen, **weights})
        return objective(walk_clips(model, batch), batch, config.model, config.training.loss, step)

    def train_step(state: TrainState, frozen: Weights, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, metrics = jax.grad(loss, has_aux=True)(state.weights, frozen, batch, state.step)
        new, optimizer_state = optimizer.apply(gradients, state.optimizer, state.weights)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = learning_rate(config.training)(state.step)
        return TrainState(new, optimizer_state, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, None))
