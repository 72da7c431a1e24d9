"""Delay of Ctrl-C and SIGTERM during a few system calls that belong together, such as the renames of several files."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_INTERRUPT, _TERMINATE = int(signal.SIGINT), int(signal.SIGTERM)


@contextlib.contextmanager
def signals_delayed() -> Iterator[None]:
    """Let signals that arrive in the block take effect at its end.

    Python handles signals on the main thread only, so that nothing has to be delayed on another one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (_INTERRUPT, _TERMINATE)}
    if None in before.values():  # a handler that was not installed from Python cannot be put back
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    try:
        for number in before:
            signal.signal(number, note)
        yield
    finally:
        # A handler that raises as soon as it is back must not keep the other one from being put back.
        try:
            signal.signal(_TERMINATE, before[_TERMINATE])
        finally:
            signal.signal(_INTERRUPT, before[_INTERRUPT])
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)
