"""Time of a call on a device: the median of the means of several runs, without compilation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

RUNS = 5  # means
SECONDS = 0.3  # of all runs together, at least


def milliseconds(call: Callable[[], Any], wait: Callable[[Any], Any], quick: bool = False) -> float:
    """Return the milliseconds of a call when many are in flight, as in a loop of the host.

    Args:
        call: starts the work and returns its result.
        wait: returns when a result is finished.
        quick: time two calls, to try the code.
    """
    for _ in range(2):  # compiles, and fills caches
        wait(call())
    start = time.perf_counter()
    wait(call())
    once = time.perf_counter() - start
    count = 1 if quick else max(1, min(200, round(SECONDS / RUNS / max(once, 1e-6))))
    means = []
    for _ in range(2 if quick else RUNS):
        start = time.perf_counter()
        for _ in range(count):
            out = call()
        wait(out)
        means.append((time.perf_counter() - start) / count * 1e3)
    return statistics.median(means)
