"""Locks of run folders: one process per run, on any number of machines that share the folder.

The kernel releases the lock of a dead process, so a lock is never stale. The text in the file describes the owner for
people.
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
    """Create a folder and lock it for the block; yield whether this process has the lock."""
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
    """Return the process that has locked a folder, or "" if none has."""
    try:
        with (folder / LOCK).open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "a process"
    except FileNotFoundError:
        pass
    return ""
