"""The gradient of the objective over a global batch: each device walks its clips, in parts if there are several."""

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
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.objective import Batch, Numbers, objective, term_numbers
from sam2_3dmed_jax.training.sharding import BATCH_AXES, gathered, summed, weight_specs

Gradient = Callable[[Weights, Weights, Batch, jax.Array], tuple[Weights, dict[str, jax.Array]]]


def global_gradient(config: ExperimentConfig, graphdef: nnx.GraphDef, mesh: Mesh) -> Gradient:
    """The function (weights, frozen weights, batch, step) -> (gradients of the weights, losses), of global arrays.

    Frozen weights have no gradient. Losses are sums over all clips, divided by the global count of terms, so neither
    depends on the mesh or on `training.accumulation`.
    """
    training, method = config.training, method_of(config.model)

    def forward(weights: Weights, batch: Batch) -> Any:
        return method.forward(merge(graphdef, weights), batch, training)

    def on_device(
        weights: Weights, frozen: Weights, batch: Batch, step: jax.Array, specs: dict[str, P]
    ) -> tuple[Weights, dict[str, jax.Array]]:
        constant = gathered(frozen, specs)

        def loss(weights: Weights, batch: Batch, numbers: Numbers | None) -> tuple[jax.Array, dict[str, jax.Array]]:
            out = forward({**constant, **gathered(weights, specs)}, batch)
            return objective(method.terms(out, batch), training.loss, step, over_devices, numbers)

        of_part = jax.grad(loss, has_aux=True)
        if training.accumulation == 1:
            gradients, losses = of_part(weights, batch, None)
        else:
            count = training.accumulation
            parts = {name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()}
            whole = {**constant, **gathered(weights, specs)}
            numbers = over_devices(term_numbers(lambda batch: forward(whole, batch), method.terms, batch))

            def add(sums: tuple, part: Batch) -> tuple[tuple, None]:
                return jax.tree.map(jnp.add, sums, of_part(weights, part, numbers)), None

            one = jax.eval_shape(of_part, weights, {name: x[0] for name, x in parts.items()}, numbers)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
            gradients, losses = lax.scan(add, zeros, parts)[0]
        return summed(gradients, specs), over_devices(losses)

    def gradient(
        weights: Weights, frozen: Weights, batch: Batch, step: jax.Array
    ) -> tuple[Weights, dict[str, jax.Array]]:
        specs = weight_specs(mesh, {**frozen, **weights})
        of = {path: specs[path] for path in weights}
        return jax.shard_map(
            functools.partial(on_device, specs=specs),
            mesh=mesh,
            in_specs=(of, {path: specs[path] for path in frozen}, P(BATCH_AXES), P()),
            out_specs=(of, P()),
            check_vma=False,  # sums over devices are written out
        )(weights, frozen, batch, step)

    return gradient


def over_devices(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums over all devices, inside `shard_map`."""
    return lax.psum(values, BATCH_AXES)
