"""Readers that break each promise, which the fuzzer must notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from sam2_3dmed_jax.errors import FileWarning, UserError
from tests.fuzz import seeds
from tests.fuzz.kinds import Kind


def _crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(path: Path) -> None:
    time.sleep(1000)


def _fill(path: Path) -> None:
    bytearray(b"\1") * (1400 << 20)


def _warn(path: Path) -> None:
    warnings.warn("invalid value encountered", RuntimeWarning, stacklevel=1)


def _warn_about_file(path: Path) -> None:
    warnings.warn(f"{path} has fewer slices than it promises", FileWarning, stacklevel=1)


def _write_at_home(path: Path) -> None:
    Path.home().joinpath("x").write_text("x")


def _leave_temporary(path: Path) -> None:
    Path(os.environ["TMPDIR"], "left").write_text("x")


def _by_native_code(path: Path) -> None:
    """Write a file without Python's notice, as native libraries do."""
    subprocess.run(["touch", "native"], close_fds=False, check=False)


def _refuse(path: Path) -> None:
    raise UserError(f"{path} is damaged; copy it again")


def _refuse_without_name(path: Path) -> None:
    raise UserError("it is damaged; copy it again")


# Names, readers, and the start of what is reported; "": nothing.
BROKEN = {
    "fills the memory": (_fill, "too much memory"),
    "raises another error": (lambda path: {}["x"], "exception KeyError"),
    "exits": (lambda path: sys.exit(3), "exception SystemExit"),
    "names no file": (_refuse_without_name, "the message names no file"),
    "prints on stderr": (lambda path: print("x", file=sys.stderr), "on stderr"),
    "prints natively": (lambda path: os.write(2, b"ITK WARNING"), "on stderr"),
    "warns": (_warn, "warning RuntimeWarning"),
    "changes the input": (lambda path: path.write_text("x"), "opens "),
    "removes the input": (lambda path: path.unlink(), "os.remove"),
    "writes elsewhere": (_write_at_home, "opens "),
    "leaves a temporary file": (_leave_temporary, "files changed"),
    "starts a program": (_by_native_code, "starts "),
    "is right and accepts": (lambda path: path.read_text(), ""),
    "is right and warns about the file": (_warn_about_file, ""),
    "is right and refuses": (_refuse, "the valid input was refused"),
    # Last, because they end their process.
    "crashes": (_crash, "crash SIGSEGV"),
    "hangs": (_hang, "no answer in 1 s"),
}
KINDS = tuple(Kind(name, seeds.text("a.json", [1]), reader, ()) for name, (reader, _) in BROKEN.items())
