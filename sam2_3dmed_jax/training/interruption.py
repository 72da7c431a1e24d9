"""Handling of Ctrl-C and SIGTERM: a run stops after its current step, where its state is complete and can be saved.

Schedulers send SIGTERM some time before they take a machine away. The run then exits with 128 + the number of the
signal (143 or 130), because a scheduler would not restart a job that exits with 0.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from sam2_3dmed_jax.runtime import distributed, interrupts

log = logging.getLogger(__name__)


class StopRequest:
    """The number of the received signal, or 0."""

    signal = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the two signals into requests inside the block. A second Ctrl-C interrupts immediately.

    Only the main thread receives signals; on other threads no request is ever made. With several processes JAX's own
    handler must stay, which lets all of them stop after the same step (`distributed.preempted`).
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread() or distributed.is_distributed():
        yield request
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not request.signal:
            log.warning("stopping after this step; Ctrl-C to stop at once")
        request.signal = request.signal or number

    with interrupts.handled_by(request_stop, signal.SIGTERM, signal.SIGINT):
        yield request
