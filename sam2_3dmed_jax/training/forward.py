"""The forward pass without gradients, for validation and pictures: one function, compiled when it is first called."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.training.losses import Term
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.objective import Batch
from sam2_3dmed_jax.training.sharding import BATCH_AXES, gathered, weight_specs


class Seen(NamedTuple):
    """What the model makes of a batch, on every process."""

    dice: Term  # of the chosen masks, over items and objects
    shown: Any  # what the method draws


@functools.cache
def make_forward(model: ModelConfig, mesh: Mesh, encoder: bool = True) -> jax.stages.Wrapped:
    """The function `(weights, frozen weights, batch) -> Seen` of a model, the same one for runs that share it."""
    graphdef, _ = abstract_model(model, encoder)
    method = method_of(model)

    def forward(weights: Weights, frozen: Weights, batch: Batch) -> Seen:
        every = {**frozen, **weights}
        specs = weight_specs(mesh, every)

        def on_device(parts: Weights, batch: Batch) -> Seen:
            out = method.forward(merge(graphdef, gathered(parts, specs)), batch)
            dice = jax.lax.psum(method.terms(out, batch)["dice"], BATCH_AXES)
            return Seen(dice, method.shown(out))

        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, P(BATCH_AXES)),
            out_specs=Seen(P(), method.shown_specs),  # type: ignore[arg-type]  # specs in the shape of a Seen
            check_vma=False,
        )(every, batch)

    return jax.jit(forward, out_shardings=NamedSharding(mesh, P()))
