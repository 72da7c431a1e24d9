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
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block, encoded_at_once
from sam2_3dmed_jax.inference.propagate import Steps, walk_block
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
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
    graphdef, weights = abstract_model(config.model)
    sam2 = preset_config(config.model.preset, config.model.image_size)
    rows, dtype, size = config.data.objects, jnp.dtype(config.model.compute_dtype), sam2.image_size
    here = SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

    def block() -> tuple:
        features, _ = encode_block(graphdef, weights, jnp.zeros((BLOCK, size, size, 3)))
        steps = Steps(
            features=jax.tree.map(lambda x: x[:, None], features),
            context=jnp.zeros((BLOCK, 1, sam2.d_model)),
            on=jnp.zeros((BLOCK, rows), jnp.int32),
            active=jnp.zeros((BLOCK, rows), bool),
        )
        bank = MemoryBank.empty(sam2, rows, 1, dtype)
        return bank, steps, jnp.zeros(rows, jnp.int32), jnp.int32(0)

    weights = placed(weights)
    walked = dict(zip(("bank", "steps", "direction", "depth"), placed(jax.eval_shape(block)), strict=True))
    encoded = encoded_at_once(size)
    images = jax.ShapeDtypeStruct((encoded, size, size, 3), jnp.float32, sharding=here)
    encode, walk = partial(encode_block.trace, graphdef), partial(walk_block.trace, graphdef)
    return [
        Program(f"encode {encoded} slices", encode, {"weights": weights, "images": images}, 1),
        Program(f"walk {BLOCK} slices", walk, {"weights": weights, **walked}, 1),
    ]
