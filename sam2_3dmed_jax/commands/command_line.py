"""What every command line of this project does alike: mistakes are one line, and exit codes say whose they are.

Exit codes: 0 success, 2 a user's mistake (one line on stderr), 1 a bug, 130 interrupted, and 143 where SIGTERM has
ended a training run in order.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from sam2_3dmed_jax.errors import Stopped, UserError

_COORDINATES = re.compile(r"-([\d.][\d.eE+-]*)?(,[\d.eE+-]+)+")


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        print(f"error: {message} (see '{self.prog} --help')", file=sys.stderr)
        raise SystemExit(2)


def joined_coordinates(words: Sequence[str]) -> list[str]:
    """`--flag -12,30,45` as `--flag=-12,30,45`: argparse would take what begins with a minus for a flag."""
    joined: list[str] = []
    for word in words:
        if joined and re.fullmatch("--[^=]+", joined[-1]) and _COORDINATES.fullmatch(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Around work that tidies up when it is interrupted: SIGTERM, as schedulers send it, ends it the same way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(work: Callable[[], None], debug: bool, interrupted: str) -> int:
    """Do the work of a command and return its exit code; `interrupted` tells what an interruption leaves."""
    try:
        work()
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"{stop}; {interrupted}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"a bug: {type(error).__name__}: {error} (run again with --debug and report it)", file=sys.stderr)
        return 1
    return 0


def start() -> None:
    """What every command that computes begins with."""
    from absl import logging

    from sam2_3dmed_jax.runtime import compilation_cache, host_memory

    logging.set_verbosity(logging.FATAL)  # Orbax logs, with pages of tracebacks, what it also raises
    host_memory.keep()
    compilation_cache.enable()
