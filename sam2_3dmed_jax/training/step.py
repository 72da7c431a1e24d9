"""The train step: one jitted, donated function from state and batch to state and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import ExperimentConfig, TrainingConfig
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.training.objective import objective
from sam2_3dmed_jax.training.parts import rate_factors
from sam2_3dmed_jax.training.sharding import weight_shardings
from sam2_3dmed_jax.training.walk import walk_clips


class TrainState(NamedTuple):
    """All that changes from step to step; frozen weights stand beside it."""

    weights: Weights
    optimizer: optax.OptState
    step: jax.Array  # int32: batches consumed


Step = Callable[[TrainState, Weights, dict], tuple[TrainState, dict[str, jax.Array]]]


def learning_rate(config: TrainingConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    return optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(config.warmup_steps, config.steps),
        max(config.steps, config.warmup_steps + 1),
        config.learning_rate / 100,
    )


def make_optimizer(config: TrainingConfig, weights: Weights) -> optax.GradientTransformation:
    """AdamW with gradient clipping; matrices decay, vectors do not; each part learns at its own rate."""
    factors = rate_factors(weights, config.part_learning_rates)
    decays = {path: value.ndim > 1 and path.endswith("kernel") for path, value in weights.items()}

    def scale(updates: Weights, _: Weights | None = None) -> Weights:
        return {path: update * factors[path] for path, update in updates.items()}

    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.scale_by_adam(b1=0.9, b2=0.999),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.stateless(scale),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def init_state(config: ExperimentConfig, weights: Weights, mesh: Mesh) -> TrainState:
    """Trained weights on the mesh, and an optimizer state sharded like them."""
    shardings = weight_shardings(mesh, weights)
    # A copy, since the step donates its state.
    placed = {path: jax.device_put(jnp.array(value), shardings[path]) for path, value in weights.items()}
    optimizer = make_optimizer(config.training, placed)
    state = jax.jit(optimizer.init, out_shardings=optimizer_shardings(optimizer, placed, mesh))(placed)
    step = jax.device_put(jnp.zeros((), jnp.int32), NamedSharding(mesh, P()))
    return TrainState(placed, state, step)


def optimizer_shardings(optimizer: optax.GradientTransformation, weights: Weights, mesh: Mesh) -> optax.OptState:
    """Shardings of the optimizer state: moments lie where their weights do, counters everywhere."""
    shardings = weight_shardings(mesh, weights)
    abstract = jax.eval_shape(optimizer.init, weights)
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract,
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )


def make_step(config: ExperimentConfig, graphdef: nnx.GraphDef, weights: Weights, mesh: Mesh) -> Step:
    """Compile-ready train step of an experiment. Frozen weights are an argument without gradient or optimizer state."""
    optimizer = make_optimizer(config.training, weights)
    state_shardings = TrainState(
        weight_shardings(mesh, weights), optimizer_shardings(optimizer, weights, mesh), NamedSharding(mesh, P())
    )

    def loss(weights: Weights, frozen: Weights, batch: dict, step: jax.Array) -> tuple[jax.Array, dict]:
        model = merge(graphdef, {**frozen, **weights})
        return objective(walk_clips(model, batch), batch, config.model, config.training.loss, step)

    def train_step(state: TrainState, frozen: Weights, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, metrics = jax.grad(loss, has_aux=True)(state.weights, frozen, batch, state.step)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.weights)
        new = optax.apply_updates(state.weights, updates)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        metrics["learning_rate"] = learning_rate(config.training)(state.step)
        return TrainState(new, optimizer_state, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, None))
