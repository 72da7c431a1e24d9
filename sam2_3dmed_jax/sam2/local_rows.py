"""Functions of rows that each device applies to its own rows, because the compiler cannot partition them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

_partition_spec: Callable[..., PartitionSpec] = PartitionSpec  # JAX leaves its constructor without annotations


def on_local_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` split along the first axis of its arguments over the devices of their mesh.

    The mesh is known from the arguments' types, so that no caller needs to pass it. Rows that the number of devices
    does not divide are computed on each device.
    """

    def apply(x: jax.Array, *rest: jax.Array | None) -> Any:
        mesh = jax.typeof(x).sharding.mesh
        if not mesh.auto_axes:  # no mesh, or inside a shard_map
            return function(x, *rest)
        spec = _partition_spec(mesh.auto_axes) if x.shape[0] % mesh.size == 0 else _partition_spec()
        return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x, *rest)

    return apply
