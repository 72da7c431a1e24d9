"""Transfer of batches from the host to the devices, one batch ahead of the running step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Sharding


def to_devices(batches: Iterable[Mapping[str, Any]], sharding: Sharding) -> Iterator[dict[str, jax.Array]]:
    """Put each batch on the devices while the step before it runs. At most two batches are on the devices.

    Args:
        batches: this process's part of each batch, `[B / processes, ...]`; their arrays must not change afterwards.
        sharding: of the leading axis.

    Yields:
        Global arrays `[B, ...]`.
    """
    ahead = None
    for batch in batches:
        following = {name: jax.make_array_from_process_local_data(sharding, part) for name, part in batch.items()}
        if ahead is not None:
            yield ahead
        ahead = following
    if ahead is not None:
        yield ahead
