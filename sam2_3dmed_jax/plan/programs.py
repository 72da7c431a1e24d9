"""The programs that a plan compiles: the train step, or the two that prediction spends its time in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.abstract_arguments import block_arguments
from sam2_3dmed_jax.inference.compiled_steps import walk_block
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.training.setup import abstract_run, complete
from sam2_3dmed_jax.training.sharding import make_mesh

What = Literal["train", "predict"]


@dataclass(frozen=True)
class Program:
    """One jitted function with abstract arguments."""

    name: str
    trace: Callable[..., jax.stages.Traced]  # of the arguments
    arguments: dict[str, Any]  # trees of `ShapeDtypeStruct` by name
    chips: int  # that it runs on


def programs(config: ExperimentConfig, what: What, devices: list[Any]) -> list[Program]:
    """What there is to compile for these devices.

    Raises:
        UserError: settings that do not fit the devices or each other.
    """
    if what == "predict":
        return _prediction(config, devices[0])
    run = abstract_run(config, make_mesh(config.mesh, devices))
    arguments = {"state": run.state, "frozen": run.frozen, "batch": run.batch}
    return [Program("train step", run.step.trace, arguments, len(devices))]


def _prediction(config: ExperimentConfig, device: Any) -> list[Program]:
    """A block of slices encoded, and walked in one direction from one prompted slice; on one chip, as `predict`."""
    config = complete(config)
    if config.model.kind != "sam2":
        raise UserError("--what predict: a U-Net's prediction has no such plan; leave it out to plan its training")
    graphdef, weights = abstract_model(config.model)
    sam2 = preset_config(config.model.preset, config.model.image_size)
    here = SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

    weights = placed(weights)
    dtype = jnp.dtype(config.model.compute_dtype)
    images, walk_arguments = placed(block_arguments(graphdef, weights, sam2, config.data.objects, 1, dtype))
    walked = dict(zip(("bank", "steps", "direction", "depth"), walk_arguments, strict=True))
    encode, walk = partial(encode_block.trace, graphdef), partial(walk_block.trace, graphdef)
    return [
        Program(f"encode {images.shape[0]} slices", encode, {"weights": weights, "images": images}, 1),
        Program(f"walk {BLOCK} slices", walk, {"weights": weights, **walked}, 1),
    ]
