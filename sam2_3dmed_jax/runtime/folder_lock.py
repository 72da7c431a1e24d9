"""Lock of a folder for one writer: a run, a prepared folder, a feature cache, an evaluation or a shard of a sweep.

The lock is a small file in the folder that names its owner: host, process and command. Its owner touches it every few
seconds, and removes it at the end. The lock of a process of this machine that has ended is taken over at once. The lock
of another machine is taken over when it has not changed for `STALE_SECONDS` of this machine's clock; clocks of two
machines are not compared. All of this works on network file systems: it needs links or exclusive creation, and
renaming, but none of the locks of the operating system, which many of these lack.

Why no library: flufl.lock compares clocks of machines, and filelock (4.3) replaces stale locks only on file systems
that can exchange two names, which NFS cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sam2_3dmed_jax.errors import UserError, cut, escaped, message_line
from sam2_3dmed_jax.runtime import distributed, interrupts
from sam2_3dmed_jax.runtime.atomic_files import write_errors
from sam2_3dmed_jax.runtime.user_files import parse_json, typed

LOCK = ".lock"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0  # many heartbeats, because a busy machine or file system may delay some of them
POLL_SECONDS = 0.5  # between two looks at the lock of another machine
_MAX_BYTES = 4096
_NO_PROCESS = ""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    token: str  # of this lock, unique
    host: str  # its name, for messages
    machine: str  # what process ids belong to: a boot of a machine and a namespace of processes; "": unknown
    pid: int
    started: str  # when the process started, in ticks since the boot; "": unknown
    command: str
    since: str  # local time of its host

    def __str__(self) -> str:
        """Return the owner in a few words."""
        this = self.pid == os.getpid() and self.machine == _machine()
        process = "this process" if this else f"process {self.pid} on {cut(self.host, 40)}"
        return f"{process} since {self.since} ({cut(self.command, 80)})"


@dataclass(frozen=True)
class _State:
    """A lock file as it was read; two equal states: nothing has changed."""

    content: bytes
    modified: int  # ns

    @property
    def name(self) -> str:
        """A name for this content."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    @property
    def owner(self) -> Owner | None:
        """The owner; None if the file is damaged."""
        try:
            return typed(parse_json(self.content, "", ""), Owner, "", "")
        except UserError:
            return None


class FolderLock:
    """The lock of a folder; `acquire` and `release` may be called once each."""

    def __init__(self, folder: str | os.PathLike[str], fix: str, name: str = LOCK):
        """Remember the folder.

        Args:
            folder: is created if it does not exist.
            fix: what the user can do besides waiting, such as "give another --out".
            name: of the file, which starts with `LOCK`; locks of different names do not exclude each other.
        """
        self._folder, self._fix = Path(folder), fix
        self._path = self._folder / name
        self._content = b""
        self._created: list[Path] = []  # folders, innermost first
        self._pid = os.getpid()
        self._stop, self._touching = threading.Event(), threading.RLock()

    def acquire(self) -> None:
        """Take the lock, also from a process that has ended; wait for `STALE_SECONDS` at most.

        Raises:
            UserError: another process holds it, which the message names, or the folder cannot be written.
        """
        with write_errors(self._folder):
            missing = [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
            self._folder.mkdir(parents=True, exist_ok=True)
            self._created = missing
            self._content = json.dumps(asdict(_this_process())).encode()
            try:
                self._take()
            except BaseException:
                self._remove_created()
                raise
        _held.add(self)
        threading.Thread(target=self._beat, daemon=True, name=f"lock of {self._folder}").start()

    def release(self) -> None:
        """Remove the lock if this process holds it, and folders that it created if they are still empty."""
        if self not in _held or os.getpid() != self._pid:  # a forked process holds nothing
            return
        _held.discard(self)
        self._stop.set()
        with self._touching, contextlib.suppress(OSError):
            if (state := _read(self._path)) and state.content == self._content:
                self._path.unlink()
        self._remove_created()

    def _take(self) -> None:
        while not _create(self._path, self._content):
            state = _read(self._path)
            if state and _has_ended(self._path, state) and _replace(self._path, state, self._content):
                return
            if state := _read(self._path):  # otherwise it was released in the meantime
                owner = state.owner or "a process that left no name"
                raise UserError(f"{self._folder} is in use by {owner}; wait for it, stop it, or {self._fix}")

    def _beat(self) -> None:
        """Show that this process is alive, and end it if another one has taken the lock (runs in a thread)."""
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # The file system may be away for a while. If it stays away, writing results fails with a better message.
            with self._touching, contextlib.suppress(OSError):
                if self._stop.is_set():
                    return
                state = _read(self._path)
                if state is None and self._folder.is_dir():  # somebody has removed it by hand
                    _create(self._path, self._content)
                    state = _read(self._path)
                if state and state.content != self._content:
                    message = (
                        f"error: {self._folder} was taken over by {state.owner or 'another process'}, because this one "
                        "did not run for a while; it stops here"
                    )
                    interrupts.end_process(message_line(message), code=2)
                os.utime(self._path)

    def _remove_created(self) -> None:
        for folder in self._created:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def one_writer(folder: str | os.PathLike[str], fix: str, name: str = LOCK) -> Iterator[None]:
    """Hold the lock of a folder in the block.

    Args:
        folder: is created if it does not exist, and removed if it is still empty at the end.
        fix: as in `FolderLock`.
        name: as in `FolderLock`.

    Raises:
        UserError: another process holds the lock, which the message names, or the folder cannot be written.
    """
    lock = FolderLock(folder, fix, name)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def one_job(folder: str | os.PathLike[str], fix: str, name: str = LOCK) -> Iterator[None]:
    """Hold the lock of a folder in the block, which all processes of a run enter; the first one holds it for all.

    Args and errors are those of `one_writer`.
    """
    lock = FolderLock(folder, fix, name)
    distributed.run_on_first_process(lock.acquire)
    try:
        yield
    finally:
        lock.release()


def is_lock(path: Path) -> bool:
    """Return whether a file belongs to a lock, for those who check what a folder contains."""
    return path.name == LOCK or path.name.startswith((f"{LOCK}-", f"{LOCK}."))


_held: set[FolderLock] = set()  # of this process


@interrupts.before_forced_exit
def _release_all() -> None:
    for lock in list(_held):
        lock.release()


def _create(path: Path, content: bytes) -> bool:
    """Create a file with its content, unless it exists; of several processes, one succeeds."""
    temporary = _written(path, content)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return os.stat(temporary).st_nlink == 2  # NFS repeats a request whose answer was lost
    except OSError:  # a file system without links
        try:
            with open(path, "xb") as file:
                file.write(content)
            return True
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)


def _replace(path: Path, old: _State, content: bytes) -> bool:
    """Replace a lock whose owner has ended; of several processes, one succeeds.

    Before it renames, a process takes a further lock, whose name is a hash of the one that it replaces. So no process
    can remove the lock of another one that was faster. The further lock of a process that was killed here is replaced
    in the same way.
    """
    guard = path.with_name(f"{path.name}.{old.name}")
    if not _create(guard, content):
        state = _read(guard)
        if state is None or not _has_ended(guard, state) or not _replace(guard, state, content):
            return False
    try:
        now = _read(path)
        if now is None or now.content != old.content:
            return False
        os.replace(_written(path, content), path)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _written(path: Path, content: bytes) -> Path:
    """Return a new temporary file next to `path`."""
    temporary = path.with_name(f"{LOCK}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _read(path: Path) -> _State | None:
    """Return the state of a lock file; None if it does not exist.

    Raises:
        OSError: it cannot be read.
    """
    try:
        # Opening it makes NFS ask the server, where `stat` may return what it knows.
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES)
            return _State(content, os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _has_ended(path: Path, state: _State) -> bool:
    """Return whether the owner of a lock has ended; watch the lock if its process cannot be looked up here."""
    owner = state.owner
    if owner and owner.machine and owner.machine == _machine():
        started = _start_of(owner.pid)
        return started == _NO_PROCESS or started != owner.started
    log.warning(
        "waiting up to %.0f s for a sign of life of %s, which holds %s",
        STALE_SECONDS,
        f"process {owner.pid} on {owner.host}" if owner else "another process",
        path.parent,
    )
    until = time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        if _read(path) != state:
            return False
    return True


def _this_process() -> Owner:
    program, *arguments = sys.argv or [""]
    return Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_start_of(os.getpid()),
        command=cut(escaped(shlex.join([os.path.basename(program), *arguments])), 300),
        since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    )


def _machine() -> str:
    """Return an identity of this boot of this machine and of the namespace of its process ids; "" without `/proc`."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return when a process of this machine started; `_NO_PROCESS` if it has ended, also if nobody waited for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return _NO_PROCESS
    return _NO_PROCESS if fields[0] in "ZX" else fields[19]
