"""One process a run: any number of processes, on any machines that share the folder, may work on one programme.

The kernel gives a dead owner's lock back, so that none is ever stale and none has to be taken over; what the file says
of its owner is for the eye.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LOCK = "owner"


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[bool]:
    """Make a folder and own it in this context; False: another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield True


def owner(folder: Path) -> str:
    """Who works on a folder; "": nobody."""
    try:
        with (folder / LOCK).open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "a process"
    except FileNotFoundError:
        pass
    return ""
