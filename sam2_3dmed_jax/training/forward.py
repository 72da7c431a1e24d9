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
from sam2_3dmed_jax.training.walk import walk_clips


class Seen(NamedTuple):
    """What the model makes of a batch, on every process; R = B x K rows."""

    dice: Term  # of the gated, chosen masks, over clips and objects
    mask_logits: jax.Array  # float32 [D, R, S/4, S/4]
    boundary_logits: jax.Array | None  # [D, R, S/4, S/4], with BD
    positions: jax.Array | None  # P_pos [B, D, D], with SRPP


@functools.cache
def make_forward(model: ModelConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """The function `(weights, frozen weights, batch) -> Seen` of a model, the same one for runs that share it."""
    graphdef, _ = abstract_model(model)

    def forward(weights: Weights, frozen: Weights, batch: Batch) -> Seen:
        out = walk_clips(merge(graphdef, {**frozen, **weights}), batch)
        dice = terms(out, batch, model)["dice"]
        return Seen(dice, out.mask_logits, out.candidates.boundary_logits, out.positions)

    return jax.jit(forward, out_shardings=NamedSharding(mesh, P()))
