"""The forward pass without gradients, for validation and pictures: one function, compiled when it is first called."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.training.losses import Term
from sam2_3dmed_jax.training.objective import Batch, terms
from sam2_3dmed_jax.training.sharding import BATCH_AXES, gathered, weight_specs
from sam2_3dmed_jax.training.walk import walk_clips


class Seen(NamedTuple):
    """What the model makes of a batch, on every process; R = B x K rows."""

    dice: Term  # of the gated, chosen masks, over clips and objects
    mask_logits: jax.Array  # float32 [D, R, S/4, S/4]
    boundary_logits: jax.Array | None  # [D, R, S/4, S/4], with BD
    positions: jax.Array | None  # P_pos [B, D, D], with SRPP


@functools.cache
def make_forward(model: ModelConfig, mesh: Mesh, encoder: bool = True) -> jax.stages.Wrapped:
    """The function `(weights, frozen weights, batch) -> Seen` of a model, the same one for runs that share it."""
    graphdef, _ = abstract_model(model, encoder)

    def forward(weights: Weights, frozen: Weights, batch: Batch) -> Seen:
        every = {**frozen, **weights}
        specs = weight_specs(mesh, every)

        def on_device(parts: Weights, batch: Batch) -> Seen:
            out = walk_clips(merge(graphdef, gathered(parts, specs)), batch)
            dice = jax.lax.psum(terms(out, batch, model)["dice"], BATCH_AXES)
            return Seen(dice, out.mask_logits, out.candidates.boundary_logits, out.positions)

        rows = P(None, BATCH_AXES)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, P(BATCH_AXES)),
            out_specs=Seen(P(), rows, rows, P(BATCH_AXES)),  # type: ignore[arg-type]  # specs in the shape of a Seen
            check_vma=False,
        )(every, batch)

    return jax.jit(forward, out_shardings=NamedSharding(mesh, P()))
