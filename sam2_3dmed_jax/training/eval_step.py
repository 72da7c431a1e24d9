"""Eval step: the forward pass without gradients, for validation and images. It is compiled at its first call."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import AnyModelConfig, DataConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.model.adapters import effective_weights
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.sam2.parameters import Weights, merge
from sam2_3dmed_jax.training.losses import Term
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.sharding import BATCH_AXES, gathered, weight_specs
from sam2_3dmed_jax.training.unroll import Batch


class EvalOutput(NamedTuple):
    """The result of the eval step, replicated on every process."""

    dice: Term  # of the chosen masks, over items and objects
    logit_counts: jax.Array  # see `calibration`
    image_data: Any  # what `Method.images` draws


@functools.cache
def make_eval_step(
    model: AnyModelConfig, mesh: Mesh, encoder: bool = True, adapter_scale: float = 0.0
) -> jax.stages.Wrapped:
    """Return the function `(weights, frozen weights, batch) -> EvalOutput`; runs with the same model share it.

    Args:
        model: the model's config.
        mesh: of the devices.
        encoder: whether the model encodes slices; False: batches contain their features.
        adapter_scale: `LoraConfig.scale` of the adapters among the weights.
    """
    graphdef, _ = abstract_model(model, encoder)
    method = method_of(model)

    def eval_step(weights: Weights, frozen: Weights, batch: Batch) -> EvalOutput:
        all_weights = {**frozen, **weights}
        specs = weight_specs(mesh, all_weights)

        def on_device(parts: Weights, batch: Batch) -> EvalOutput:
            rendered = method.render(batch, DataConfig(augmentation=NO_AUGMENTATION))
            complete = effective_weights(gathered(parts, specs), adapter_scale)
            out = method.forward(merge(graphdef, complete), rendered)
            dice, counts = method.terms(out, rendered)["dice"], method.logit_counts(out, rendered)
            dice, counts = jax.lax.psum((dice, counts), BATCH_AXES)
            return EvalOutput(dice, counts, method.image_data(out))

        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, P(BATCH_AXES)),
            out_specs=EvalOutput(P(), P(), method.image_specs),  # type: ignore[arg-type]  # specs in the shape of the output
            check_vma=False,
        )(all_weights, batch)

    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, P()))
