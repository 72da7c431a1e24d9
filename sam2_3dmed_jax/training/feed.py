"""Transfer of batches from the host to the devices, double-buffered: the next batch arrives while a step runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Sharding


def to_devices(batches: Iterable[Mapping[str, Any]], sharding: Sharding) -> Iterator[dict[str, jax.Array]]:
    """Start the transfer of each batch when it is asked for.

    Args:
        batches: this process's part of each batch, `[B / processes, ...]`; their arrays must not change afterwards.
        sharding: of the leading axis.

    Yields:
        Global arrays `[B, ...]`.
    """
    for batch in batches:
        yield {name: jax.make_array_from_process_local_data(sharding, part) for name, part in batch.items()}


class StepsInFlight:
    """Limit of the steps that the devices have not finished: one that runs, and the next one behind it.

    Calls of compiled functions return before their results exist. Without a limit, a host that is faster than its
    devices would fill their memory with batches. With it, the batch of step i + 1 is transferred while step i runs,
    step i + 1 starts without waiting for the host, and at most two batches are on the devices.
    """

    def __init__(self) -> None:
        self._newest: Any = None

    def add(self, outputs: Any) -> None:
        """Add a step by some of its outputs, which must not be donated, and wait for the step before it."""
        before, self._newest = self._newest, outputs
        jax.block_until_ready(before)
