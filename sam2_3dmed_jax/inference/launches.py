"""Launches of compiled programs ahead of their results, so that the device computes while the host stores results."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

from sam2_3dmed_jax.inference import device_memory

LaunchT = TypeVar("LaunchT")


def launched_ahead(launches: Iterable[LaunchT]) -> Iterator[LaunchT]:
    """Yield launched programs, each after the next one has been launched.

    At most two are in flight, so that a cancellation waits for one more program. On CPU the host and the device share
    the cores: a launch ahead would gain nothing and delay the cancellation, so that each launch is yielded at once.

    Args:
        launches: launches a program when the next item is taken; an item contains arrays of the program's results.
    """
    waiting: deque[LaunchT] = deque()
    for launch in launches:
        waiting.append(launch)
        if len(waiting) > _ahead(launch):
            yield waiting.popleft()
    yield from waiting


def copy_to_host_async(tree: object) -> None:
    """Start the copies of all arrays of a tree to the host; `jax.device_get` waits for them."""
    for array in jax.tree.leaves(tree):
        array.copy_to_host_async()


def _ahead(launch: object) -> int:
    """Return how many programs are launched before a result is fetched."""
    first = next(leaf for leaf in jax.tree.leaves(launch) if isinstance(leaf, jax.Array))
    return int(device_memory.is_separate(first))
