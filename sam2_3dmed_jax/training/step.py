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
from sam2_3dmed_jax.training.objective import Batch, Numbers, objective, term_numbers
from sam2_3dmed_jax.training.optimizer import Optimizer, learning_rate
from sam2_3dmed_jax.training.sharding import in_parts, place, weight_shardings
from sam2_3dmed_jax.training.walk import WalkOutput, walk_clips


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


def result(state: TrainState) -> Weights:
    """The trained weights to use: averaged ones, if there are."""
    return state.ema or state.weights


def make_step(config: ExperimentConfig, graphdef: nnx.GraphDef, weights: Weights, mesh: Mesh) -> jax.stages.Wrapped:
    """Compile-ready train step of an experiment. Frozen weights are an argument without gradient or optimizer state."""
    training = config.training
    optimizer = Optimizer(training, weights)
    placed = weight_shardings(mesh, weights)
    state_shardings: Any = TrainState(  # of shardings, in the shape of a state
        placed,  # type: ignore[arg-type]
        optimizer.shardings(weights, mesh),
        NamedSharding(mesh, P()),  # type: ignore[arg-type]
        placed if training.ema else {},  # type: ignore[arg-type]
    )

    def walk(weights: Weights, frozen: Weights, batch: Batch) -> WalkOutput:
        model = merge(graphdef, {**frozen, **weights})
        return walk_clips(model, batch, training.remat_trunk, training.remat_slices)

    def loss(
        weights: Weights, frozen: Weights, batch: Batch, step: jax.Array, numbers: Numbers | None = None
    ) -> tuple[jax.Array, dict]:
        return objective(walk(weights, frozen, batch), batch, config.model, training.loss, step, numbers)

    def gradient(weights: Weights, frozen: Weights, batch: Batch, step: jax.Array) -> tuple[Weights, dict]:
        of_part = jax.grad(loss, has_aux=True)
        if training.accumulation == 1:
            return of_part(weights, frozen, batch, step)
        parts = in_parts(batch, training.accumulation, mesh)
        numbers = term_numbers(lambda batch: walk(weights, frozen, batch), batch, config.model)

        def add(sums: tuple, part: Batch) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, sums, of_part(weights, frozen, part, step, numbers)), None

        shapes = jax.eval_shape(of_part, weights, frozen, jax.tree.map(lambda x: x[0], parts), step, numbers)
        return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)[0]

    def train_step(state: TrainState, frozen: Weights, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, metrics = gradient(state.weights, frozen, batch, state.step)
        new, optimizer_state = optimizer.apply(gradients, state.optimizer, state.weights)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = learning_rate(training)(state.step)
        decay = jnp.minimum(training.ema, (1 + state.step) / (10 + state.step))  # early averages follow quickly
        ema = {path: decay * old + (1 - decay) * new[path] for path, old in state.ema.items()}
        return TrainState(new, optimizer_state, state.step + 1, ema), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, None))
