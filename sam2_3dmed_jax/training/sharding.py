"""Mesh `("data", "fsdp")` and shardings of arrays. The same code runs on one device and on a pod.

Each device unrolls its own clips with complete weights: large weights are sharded over "fsdp" and gathered at the start
of a step, and their gradients are summed into the same shards. The collectives are written out (`shard_map`), because
an automatic partitioner would split activations along the axes of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import MeshConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.parameters import Weights

BATCH_AXES = ("data", "fsdp")

SMALL = 1 << 16  # parameters with fewer elements are replicated

# (path pattern, axis that is sharded over "fsdp", or None to replicate). The first match decides.
RULES: tuple[tuple[str, int | None], ...] = (
    (r"kernel$", -1),
    (r".", None),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh over all devices of this job, or over `devices`, which need not exist.

    Raises:
        UserError: the product of the axes is not the number of devices.
    """
    shape = mesh_shape(config, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int]:
    """Return the sizes of "data" and "fsdp" over `count` devices.

    Raises:
        UserError: the product of the axes is not the number of devices.
    """
    data, fsdp = config.data, config.fsdp
    if data == -1:
        data = count // fsdp if fsdp > 0 else 0
    elif fsdp == -1:
        fsdp = count // data if data > 0 else 0
    if data < 1 or fsdp < 1 or data * fsdp != count:
        raise UserError(
            f"mesh: {config.data} x {config.fsdp} does not cover {count} devices; let mesh.data x mesh.fsdp be {count}"
        )
    return data, fsdp


def batch_sharding(mesh: Mesh, batch_size: int, accumulation: int = 1) -> NamedSharding:
    """Return the sharding of batches, over both axes.

    Raises:
        UserError: the batch size is not a multiple of the devices times `training.accumulation`.
    """
    check_batch(mesh.size, batch_size, accumulation)
    return NamedSharding(mesh, P(BATCH_AXES))


def check_batch(devices: int, batch_size: int, accumulation: int = 1) -> None:
    """Check that a batch can be split.

    Raises:
        UserError: the batch size is not a multiple of the devices times `training.accumulation`.
    """
    if accumulation < 1:
        raise UserError(f"training.accumulation: {accumulation} is not a number of parts; use 1 or more")
    if batch_size % (devices * accumulation):
        parts = f" x {accumulation} parts (training.accumulation)" if accumulation > 1 else ""
        raise UserError(
            f"training.batch_size: {batch_size} is not divisible by {devices} devices{parts}; use a multiple of "
            f"{devices * accumulation}"
        )


def weight_shardings(mesh: Mesh, weights: Weights) -> dict[str, NamedSharding]:
    """Return the sharding of each weight by `RULES`; small weights and axes that "fsdp" cannot split are replicated."""
    shardings = {}
    for path, value in weights.items():
        axis = next(axis for pattern, axis in RULES if re.search(pattern, path))
        spec = P()
        if axis is not None and value.size >= SMALL and value.shape[axis] % mesh.shape["fsdp"] == 0:
            spec = P(*[None] * (value.ndim - 1), "fsdp")
        shardings[path] = NamedSharding(mesh, spec)
    return shardings


def weight_specs(mesh: Mesh, weights: Weights) -> dict[str, P]:
    """Return the partition spec of each weight, for `shard_map`."""
    return {path: sharding.spec for path, sharding in weight_shardings(mesh, weights).items()}


def gathered(parts: Weights, specs: dict[str, P]) -> Weights:
    """Return complete weights from this device's shards, inside `shard_map`. The gradient is a sum over "fsdp"."""
    return {
        path: jax.lax.all_gather(part, "fsdp", axis=part.ndim - 1, tiled=True) if "fsdp" in specs[path] else part
        for path, part in parts.items()
    }


def summed(gradients: Weights, specs: dict[str, P]) -> Weights:
    """Return the gradients of the shards of `gathered`, summed over all devices, inside `shard_map`."""
    return {
        path: jax.lax.psum(gradient, "data" if "fsdp" in specs[path] else BATCH_AXES)
        for path, gradient in gradients.items()
    }


def place(value: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Place an array that is complete in each process on the devices of all processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    complete = np.asarray(value)
    # `device_put` would compare each array between processes, with one program and one collective per array.
    return jax.make_array_from_callback(complete.shape, sharding, lambda index: complete[index].copy())


def on_host(weights: Weights) -> dict[str, Any]:
    """Return complete weights in the memory of each process, as NumPy arrays. All processes must call it."""
    sharded = {p: x for p, x in weights.items() if isinstance(x, jax.Array) and not x.is_fully_addressable}
    if sharded:
        mesh = next(x.sharding.mesh for x in sharded.values() if isinstance(x.sharding, NamedSharding))
        replicated = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(sharded)
        weights = {**weights, **replicated}
    return {path: np.asarray(value) for path, value in weights.items()}
