"""Signal handlers for a block of code, and end of the process on Ctrl-C while XLA compiles, which can take minutes.

A KeyboardInterrupt does not help then: raised in a thread that waits for XLA's compiler, it frees memory that the
compiler still uses, and Python waits for a compilation in another thread before it exits. The handler therefore ends
the process. If native code or a handler of the training loop keeps the main thread from doing so, another thread does;
it learns of the signal through `signal.set_wakeup_fd`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from sam2_3dmed_jax.runtime import atomic_files

GRACE_SECONDS = 4.0  # for the main thread to answer; a second Ctrl-C ends the process at once
INTERRUPTED = 130  # exit code, 128 + SIGINT

Busy = Callable[[], frozenset[object]]
Handler = Callable[[int, FrameType | None], None]

_clean_ups: list[Callable[[], None]] = [atomic_files.delete_unfinished]


@contextlib.contextmanager
def handled_by(handler: Handler, *numbers: int) -> Iterator[None]:
    """Handle signals by a function in the block, and as before after it; for the main thread only.

    Args:
        handler: called with the number of the signal and the frame that it interrupts.
        numbers: of the signals.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def ended_during(busy: Busy, message: str) -> Iterator[None]:
    """End the process if Ctrl-C arrives in the block during work that cannot be interrupted.

    Only the main thread can receive signals; on another one this has no effect.

    Args:
        busy: returns the pieces of such work that are in progress.
        message: printed before the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if busy():
            end_process(message)
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    socket_before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(receiver, busy, message), daemon=True)
    watcher.start()
    try:
        if handler is signal.default_int_handler:  # another one has its reasons, as has a shell that ignores the signal
            signal.signal(signal.SIGINT, interrupt)
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(socket_before)
        sender.close()
        watcher.join()
        receiver.close()


def _watch(receiver: socket.socket, busy: Busy, message: str) -> None:
    """End the process if work in progress at a Ctrl-C is still in progress `GRACE_SECONDS` later."""
    while number := receiver.recv(1):
        work = busy()
        if number[0] != signal.SIGINT or not work:
            continue
        receiver.settimeout(GRACE_SECONDS)
        with contextlib.suppress(TimeoutError):
            if not receiver.recv(1):  # the block has ended
                return
        receiver.settimeout(None)
        if work & busy():
            end_process(message)


def before_forced_exit(clean_up: Callable[[], None]) -> Callable[[], None]:
    """Register a function that runs before the process ends without its `finally` blocks; a decorator."""
    _clean_ups.append(clean_up)
    return clean_up


def clean_up() -> None:
    """Leave nothing half-written behind, before `os._exit`."""
    for each in _clean_ups:
        with contextlib.suppress(Exception):
            each()


def end_process(message: str, code: int = INTERRUPTED) -> NoReturn:
    """End the process from any thread, with nothing half-written left behind.

    Args:
        message: printed on stderr.
        code: of the exit.
    """
    clean_up()
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    with contextlib.suppress(OSError, ValueError):
        print(f"{show_cursor}{message}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)
