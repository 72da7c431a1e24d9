"""Device memory for features: how much of it they may fill, and whether the device has memory of its own."""

from __future__ import annotations

from typing import Any

import jax

# Fraction of the device's memory that may be in use when features are added to it. The other half is for the programs:
# propagation of many objects needs several GiB.
SHARE = 0.5


def is_separate(array: jax.Array) -> bool:
    """Return whether the device of an array has its own memory and works while the host does; False on CPU."""
    platform: str = _device(array).platform
    return platform != "cpu"


def has_room(array: jax.Array) -> bool:
    """Return whether results like `array` may stay on its device, by the memory that is in use there.

    They may not on CPU, where the device's memory is the host's, and on devices that do not report their memory.
    """
    statistics = _device(array).memory_stats() if is_separate(array) else None
    if not statistics or not statistics.get("bytes_limit"):
        return False
    return bool(statistics["bytes_in_use"] <= SHARE * statistics["bytes_limit"])


def _device(array: jax.Array) -> Any:
    return min(array.devices(), key=lambda device: device.id)
