"""Ctrl-C and SIGTERM ask a run to stop at its next step boundary, where its state is whole and can be saved.

Schedulers send SIGTERM some time before they take a machine away. The run then ends as what the signal has ended, with
128 + its number (143, or 130): a job that ended with 0 would count as done and not be started again.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from sam2_3dmed_jax.runtime import distributed

log = logging.getLogger(__name__)


class StopRequest:
    """Whether a signal has come, and which: 0 for none."""

    signal = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take the two signals as requests, inside the block. A second Ctrl-C interrupts at once.

    Elsewhere than on the main thread, which alone gets signals, no request ever comes. Nor in several processes, which
    JAX lets stop at one step: its own handler must stay (`distributed.should_stop`).
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread() or distributed.several():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not request.signal:
            log.warning("stopping after this step; Ctrl-C to stop at once")
        request.signal = request.signal or number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
