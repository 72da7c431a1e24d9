"""Train step: one jitted function from state and batch to the next state and metrics. The state is donated."""

from __future__ import annotations

from collections.abc import Callable
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
from sam2_3dmed_jax.training.objective import check_loss_weights
from sam2_3dmed_jax.training.optimizer import Optimizer, learning_rate
from sam2_3dmed_jax.training.parameter_groups import paths_by_module, rate_factors, trunk_blocks
from sam2_3dmed_jax.training.sharding import place, weight_shardings
from sam2_3dmed_jax.training.unroll import Batch


class TrainState(NamedTuple):
    """Everything that changes from step to step. Frozen weights are a separate argument of the step."""

    weights: Weights
    optimizer: optax.OptState
    step: jax.Array  # int32: number of consumed batches
    ema: Weights  # averaged weights with `training.ema`, otherwise empty


# (state, frozen weights, batch) -> (state, metrics)
Step = Callable[[TrainState, Weights, Batch], tuple[TrainState, dict[str, Any]]]


def init_state(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> TrainState:
    """Place trained weights on the mesh, with an optimizer state that is sharded like them."""
    shardings = weight_shardings(mesh, weights)
    # The step donates its state, so the weights are copied.
    placed = {path: place(jnp.array(value), shardings[path]) for path, value in weights.items()}
    optimizer = Optimizer(config.training, placed, trunk_blocks(config.model))
    state = jax.jit(optimizer.init, out_shardings=optimizer.shardings(placed, mesh))(placed)
    step = place(jnp.zeros((), jnp.int32), NamedSharding(mesh, P()))
    return TrainState(placed, state, step, jax.tree.map(jnp.copy, placed) if config.training.ema else {})


def state_shardings(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> Any:
    """Return the shardings of a state, in the shape of a state."""
    placed: Any = weight_shardings(mesh, weights)
    replicated: Any = NamedSharding(mesh, P())
    moments = Optimizer(config.training, weights, trunk_blocks(config.model)).shardings(weights, mesh)
    return TrainState(placed, moments, replicated, placed if config.training.ema else {})


def abstract_state(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> TrainState:
    """Return the shapes, dtypes and shardings of `init_state`, from shapes and dtypes of the weights."""
    moments = jax.eval_shape(Optimizer(config.training, weights, trunk_blocks(config.model)).init, weights)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = TrainState(weights, moments, step, weights if config.training.ema else {})
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(config, weights, mesh),
    )


def final_weights(state: TrainState) -> Weights:
    """Return the trained weights and adapters to use: the averaged ones with `training.ema`."""
    return state.ema or state.weights


def make_step(config: ExperimentConfig, graphdef: nnx.GraphDef, weights: Weights, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the train step of an experiment, to be compiled: `(state, frozen weights, batch) -> (state, metrics)`.

    Raises:
        ValueError: a weight of `training.loss` without a loss, or a loss without its weight; tracing the step raises it
            for a term without an entry in the table of losses.
    """
    training = config.training
    check_loss_weights(training.loss)
    blocks = trunk_blocks(config.model)
    optimizer = Optimizer(training, weights, blocks)
    factors = rate_factors(weights, training.part_learning_rates, training.layer_decay, blocks)
    modules = paths_by_module(weights)
    gradient = global_gradient(config, graphdef, mesh)

    def train_step(state: TrainState, frozen: Weights, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, metrics = gradient(state.weights, frozen, batch, state.step)
        updated, optimizer_state = optimizer.apply(gradients, state.optimizer, state.weights)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = rate = learning_rate(training)(state.step)
        for module, paths in modules.items():
            metrics[f"gradient_norm/{module}"] = optax.tree.norm({path: gradients[path] for path in paths})
            metrics[f"learning_rate/{module}"] = rate * max(factors[path] for path in paths)
        decay = jnp.minimum(
            training.ema, (1 + state.step) / (10 + state.step)
        )  # small at first, so that the average follows quickly
        ema = {path: decay * old + (1 - decay) * updated[path] for path, old in state.ema.items()}
        return TrainState(updated, optimizer_state, state.step + 1, ema), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings(config, weights, mesh), None))
