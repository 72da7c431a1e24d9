"""Programs of a plan: the train step, or the two programs in which prediction spends its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from sam2_3dmed_jax.config import ExperimentConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.abstract_arguments import block_arguments
from sam2_3dmed_jax.inference.compiled_programs import propagate_block
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block
from sam2_3dmed_jax.model.build import abstract_model, architecture
from sam2_3dmed_jax.sam2.rounded_weights import rounded_shapes
from sam2_3dmed_jax.training.setup import abstract_run, complete_config
from sam2_3dmed_jax.training.sharding import make_mesh

Workload = Literal["train", "predict"]


@dataclass(frozen=True)
class Program:
    """One jitted function with abstract arguments."""

    name: str
    trace: Callable[..., jax.stages.Traced]  # takes the arguments in order
    arguments: dict[str, Any]  # trees of `ShapeDtypeStruct`, by name
    chips: int  # number of chips that it runs on


def programs_to_compile(config: ExperimentConfig, workload: Workload, devices: list[Any]) -> list[Program]:
    """Return the programs of a workload on the given devices.

    Raises:
        UserError: the settings do not fit the devices or each other.
    """
    if workload == "predict":
        return _prediction_programs(config, devices[0])
    run = abstract_run(config, make_mesh(config.mesh, devices))
    arguments = {"state": run.state, "frozen": run.frozen, "batch": run.batch}
    return [Program("train step", run.step.trace, arguments, len(devices))]


def _prediction_programs(config: ExperimentConfig, device: Any) -> list[Program]:
    """Return encoding a block of slices, and propagation through it from one prompted slice, both on one chip."""
    config = complete_config(config)
    if isinstance(config.model, UNetConfig):
        raise UserError("--what: prediction with a U-Net cannot be planned; leave --what out to plan its training")
    graphdef, weights = abstract_model(config.model)
    sam2 = architecture(config.model)
    sharding = SingleDeviceSharding(device)

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    weights = place(rounded_shapes(graphdef, weights))
    dtype = jnp.dtype(config.model.compute_dtype)
    images, propagation_arguments = place(block_arguments(graphdef, weights, sam2, config.data.clips.objects, 1, dtype))
    propagation = dict(zip(("bank", "steps", "direction", "depth"), propagation_arguments, strict=True))
    encode, propagate = partial(encode_block.trace, graphdef), partial(propagate_block.trace, graphdef)
    return [
        Program(f"encode {images.shape[0]} slices", encode, {"weights": weights, "images": images}, 1),
        Program(f"propagate {BLOCK} slices", propagate, {"weights": weights, **propagation}, 1),
    ]
