"""One interruption before each system call of a write, and the files that are there afterwards.

As a script, it kills a process before each call, and prints the states: `python -m tests.helpers.interrupted_writes`.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from sam2_3dmed_jax.runtime import atomic_files
from sam2_3dmed_jax.runtime.atomic_files import atomic_folder, atomic_path, atomic_paths

CALLS = ("open", "mkdir", "link", "replace", "rename", "unlink", "rmdir")
Files = dict[str, str]  # content by path
EXCHANGE = atomic_files._exchange_at_once


@dataclass(frozen=True)
class Write:
    """A write that replaces files, whose contents are "old" before and "new" after it."""

    old: tuple[str, ...]  # files that are there before
    new: tuple[str, ...]
    work: Callable[[], None]  # in the current folder
    plain: bool = False  # without the system call that exchanges two folders

    @property
    def before(self) -> Files:
        return dict.fromkeys(self.old, "old")

    @property
    def after(self) -> Files:
        return dict.fromkeys(self.new, "new")


def one_file() -> None:
    with atomic_path("a") as file:
        file.write_text("new")


def several_files() -> None:
    with atomic_paths() as temporary_path:
        for name in ("a", "made/b", "c"):
            temporary_path(name).write_text("new")


def folder() -> None:
    with atomic_folder("model", replace=True) as temporary:
        (temporary / "weights").mkdir()
        (temporary / "weights" / "x").write_text("new")
        (temporary / "config").write_text("new")


MODEL = ("model/config", "model/weights/x")
WRITES = {
    "a file": Write(("a",), ("a",), one_file),
    "several files": Write(("a", "c"), ("a", "made/b", "c"), several_files),
    "a folder": Write((*MODEL, "model/weights/y"), MODEL, folder),
    "a folder without exchange": Write((*MODEL, "model/weights/y"), MODEL, folder, plain=True),
    "a new folder": Write((), MODEL, folder),
}


def prepare(write: Write) -> None:
    """Make the old files of a write in the current folder."""
    for name, content in write.before.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)


def files_here() -> tuple[Files, list[str]]:
    """Return the visible files and empty folders below the current folder with their contents, and the hidden ones."""
    every = [path for path in Path().rglob("*") if path.is_file() or not any(path.iterdir())]
    hidden = [path for path in every if any(part.startswith(".") for part in path.parts)]
    shown = [path for path in every if path not in hidden]
    return {str(path): path.read_text() if path.is_file() else "" for path in shown}, [str(path) for path in hidden]


@contextlib.contextmanager
def interrupted(number: int, interrupt: Callable[[], None], plain: bool) -> Iterator[list[str]]:
    """Call `interrupt` before the call of this number among the system calls of the block; yield their names."""
    seen: list[str] = []

    def counted(name: str, real: Callable, *arguments: object, **options: object) -> object:
        seen.append(name)
        if len(seen) == number:
            interrupt()
        return real(*arguments, **options)

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, functools.partial(counted, name, getattr(os, name))))
        exchange = (lambda *_: False) if plain else EXCHANGE
        counted_exchange = functools.partial(counted, "exchange", exchange)
        stack.enter_context(mock.patch.object(atomic_files, "_exchange_at_once", counted_exchange))
        yield seen


def count_calls(write: Write, root: Path) -> int:
    """Return the number of system calls of a write, in a new folder."""
    with contextlib.chdir(root):
        prepare(write)
        with interrupted(0, lambda: None, write.plain) as seen:
            write.work()
    return len(seen)


def killed(write: Write, number: int) -> None:
    """Write in a child process that dies before the call of this number, in the current folder."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        with interrupted(number, lambda: os._exit(9), write.plain):
            write.work()
    finally:
        os._exit(0)


def main() -> None:
    """Print the visible files after each kill, and after the next write has failed, by the name of the write."""
    states: dict[str, list[tuple[Files, Files]]] = {}
    for name, write in WRITES.items():
        with tempfile.TemporaryDirectory() as root:
            total = count_calls(write, Path(root))
        states[name] = []
        for number in range(1, total + 1):
            with tempfile.TemporaryDirectory() as root, contextlib.chdir(root):
                prepare(write)
                killed(write, number)
                at_once, _ = files_here()
                with contextlib.suppress(ValueError), atomic_folder("model", replace=True):
                    raise ValueError("the next write fails")
                states[name].append((at_once, files_here()[0]))
    json.dump(states, sys.stdout)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
