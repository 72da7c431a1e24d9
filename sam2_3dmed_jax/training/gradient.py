"""Gradient of the objective over a global batch: each device unrolls its own clips, in parts with accumulation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.model.adapters import effective_weights
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.training.methods import Method, method_of
from sam2_3dmed_jax.training.objective import Divisors, objective, term_divisors
from sam2_3dmed_jax.training.sharding import BATCH_AXES, gathered, summed, weight_specs
from sam2_3dmed_jax.training.unroll import Batch

Metrics = dict[str, jax.Array]
Gradient = Callable[[Weights, Weights, Batch, jax.Array], tuple[Weights, Metrics]]


def global_gradient(config: ExperimentConfig, graphdef: nnx.GraphDef, mesh: Mesh) -> Gradient:
    """Return the function (weights, frozen weights, batch, step) -> (gradients, losses) of global arrays.

    Frozen weights have no gradient. Losses are sums over all clips, divided by global counts, so that they depend
    neither on the mesh nor on `training.accumulation`.
    """

    def gradient(weights: Weights, frozen: Weights, batch: Batch, step: jax.Array) -> tuple[Weights, Metrics]:
        specs = weight_specs(mesh, {**frozen, **weights})
        trained = {path: specs[path] for path in weights}
        return jax.shard_map(
            functools.partial(_device_gradient, config, method_of(config.model), graphdef, specs),
            mesh=mesh,
            in_specs=(trained, {path: specs[path] for path in frozen}, P(BATCH_AXES), P()),
            out_specs=(trained, P()),
            check_vma=False,  # sums over devices are written out
        )(weights, frozen, batch, step)

    return gradient


def _device_gradient(
    config: ExperimentConfig,
    method: Method,
    graphdef: nnx.GraphDef,
    specs: dict[str, P],
    weights: Weights,
    frozen: Weights,
    batch: Batch,
    step: jax.Array,
) -> tuple[Weights, Metrics]:
    """Return the gradients and losses of a global batch, inside `shard_map` from this device's part of it."""
    training = config.training
    constant = gathered(frozen, specs)

    def forward(weights: Weights, rendered: Batch) -> Any:
        complete = effective_weights({**constant, **gathered(weights, specs)}, training.lora.scale)
        return method.forward(merge(graphdef, complete), rendered, training)

    compute_terms = functools.partial(method.terms, weights=training.loss)

    def loss(weights: Weights, batch: Batch, divisors: Divisors | None) -> tuple[jax.Array, Metrics]:
        rendered = method.render(batch, config.data)
        terms = compute_terms(forward(weights, rendered), rendered)
        return objective(terms, method.losses, training.loss, step, sum_over_devices, divisors)

    part_gradient = jax.grad(loss, has_aux=True)
    if training.accumulation == 1:
        gradients, losses = part_gradient(weights, batch, None)
    else:
        # Each part is rendered again, so that only one is in memory.
        rendered = method.render(batch, config.data)
        divisors = sum_over_devices(term_divisors(functools.partial(forward, weights), compute_terms, rendered))
        gradients, losses = _accumulate(part_gradient, weights, batch, divisors, training.accumulation)
    return summed(gradients, specs), sum_over_devices(losses)


def _accumulate(
    part_gradient: Callable[[Weights, Batch, Divisors], tuple[Weights, Metrics]],
    weights: Weights,
    batch: Batch,
    divisors: Divisors,
    count: int,
) -> tuple[Weights, Metrics]:
    """Return the sums of gradients and losses over `count` equal parts of a batch, computed one after the other."""
    parts = {name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()}

    def add(sums: tuple[Weights, Metrics], part: Batch) -> tuple[tuple[Weights, Metrics], None]:
        return jax.tree.map(jnp.add, sums, part_gradient(weights, part, divisors)), None

    shapes = jax.eval_shape(part_gradient, weights, {name: x[0] for name, x in parts.items()}, divisors)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(add, zeros, parts)[0]


def sum_over_devices(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return sums over all devices, inside `shard_map`."""
    return lax.psum(values, BATCH_AXES)
