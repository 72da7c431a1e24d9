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
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.training.gradient import global_gradient
from sam2_3dmed_jax.training.objective import Batch
from sam2_3dmed_jax.training.optimizer import Optimizer, learning_rate
from sam2_3dmed_jax.training.parameter_groups import by_part, rate_factors
from sam2_3dmed_jax.training.sharding import place, weight_shardings


class TrainState(NamedTuple):
    """All that changes from step to step; frozen weights stand beside it."""

    weights: Weights
    optimizer: optax.OptState
    step: jax.Array  # int32: batches consumed
    ema: Weights  # averaged weights, with `training.ema`; else empty


Step = jax.stages.Wrapped | jax.stages.Compiled  # (state, frozen weights, batch) -> (state, metrics)


def init_state(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> TrainState:
    """Trained weights on the mesh, and an optimizer state sharded like them."""
    shardings = weight_shardings(mesh, weights)
    # A copy, since the step donates its state.
    placed = {path: place(jnp.array(value), shardings[path]) for path, value in weights.items()}
    optimizer = Optimizer(config.training, placed)
    state = jax.jit(optimizer.init, out_shardings=optimizer.shardings(placed, mesh))(placed)
    step = place(jnp.zeros((), jnp.int32), NamedSharding(mesh, P()))
    return TrainState(placed, state, step, jax.tree.map(jnp.copy, placed) if config.training.ema else {})


def state_shardings(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> Any:
    """Where a state lives: shardings, in the shape of a state."""
    placed: Any = weight_shardings(mesh, weights)
    everywhere: Any = NamedSharding(mesh, P())
    moments = Optimizer(config.training, weights).shardings(weights, mesh)
    return TrainState(placed, moments, everywhere, placed if config.training.ema else {})


def abstract_state(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`'s, from those of the weights."""
    moments = jax.eval_shape(Optimizer(config.training, weights).init, weights)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = TrainState(weights, moments, step, weights if config.training.ema else {})
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        state_shardings(config, weights, mesh),
    )


def result(state: TrainState) -> Weights:
    """The trained weights to use: averaged ones, if there are."""
    return state.ema or state.weights


def make_step(config: ExperimentConfig, graphdef: nnx.GraphDef, weights: Weights, mesh: Mesh) -> jax.stages.Wrapped:
    """Compile-ready train step of an experiment. Frozen weights are an argument without gradient or optimizer state."""
    training = config.training
    optimizer = Optimizer(training, weights)
    factors, modules = rate_factors(weights, training.part_learning_rates), by_part(weights)
    gradient = global_gradient(config, graphdef, mesh)

    def train_step(state: TrainState, frozen: Weights, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, metrics = gradient(state.weights, frozen, batch, state.step)
        new, optimizer_state = optimizer.apply(gradients, state.optimizer, state.weights)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = rate = learning_rate(training)(state.step)
        for part, paths in modules.items():
            metrics[f"gradient_norm/{part}"] = optax.tree.norm({path: gradients[path] for path in paths})
            metrics[f"learning_rate/{part}"] = rate * max(factors[path] for path in paths)
        decay = jnp.minimum(training.ema, (1 + state.step) / (10 + state.step))  # early averages follow quickly
        ema = {path: decay * old + (1 - decay) * new[path] for path, old in state.ema.items()}
        return TrainState(new, optimizer_state, state.step + 1, ema), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings(config, weights, mesh), None))
