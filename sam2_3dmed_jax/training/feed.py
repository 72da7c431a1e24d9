"""Batches from the host's memory onto the devices, one ahead of the step that runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Sharding


def to_devices(batches: Iterable[Mapping[str, Any]], sharding: Sharding) -> Iterator[dict[str, jax.Array]]:
    """Put each batch on the devices while the step before it runs: two batches are there at a time.

    Args:
        batches: this process's part of each batch, `[B / processes, ...]`; arrays that nobody writes to afterwards.
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
