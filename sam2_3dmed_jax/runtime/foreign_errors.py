"""Boundary with foreign libraries: what they raise becomes one sentence, and what they log is not printed.

Readers of files raise errors of many kinds on a damaged one, and some of them log the same again or warn of values that
nobody uses. Every call of such a reader is inside of `foreign`, which a test checks (tests/test_foreign_boundaries.py).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

from sam2_3dmed_jax.errors import FileWarning, UserError, escaped
from sam2_3dmed_jax.runtime.atomic_files import GIVE_ROOM, FilePath, write_errors

MOST = 200  # characters of a library's message
# In the logs of failed tasks and futures: what waits for a TensorStore, a coroutine of Orbax, or an error of
# TensorStore, which begins with its status, such as OUT_OF_RANGE.
_OF_TENSORSTORE = r"_wrap_awaitable\(\)|[\\/]orbax[\\/]|exception=\w+\(['\"][A-Z]{2,}(_[A-Z]+)*: "
# The loggers of each library; their children are silenced with them.
LOGGERS = {
    "array_record": (),
    "blosc2": (),
    "huggingface_hub": ("huggingface_hub",),
    "nibabel": ("nibabel.global",),
    "numpy": (),
    "orbax": ("absl", "asyncio", "orbax"),  # TensorStore and uvloop report through the last two
    "pydicom": ("pydicom", "highdicom"),
    "safetensors": (),
    "SimpleITK": (),
    "torch": ("torch",),
    "tyro": (),
}


@contextlib.contextmanager
def foreign(library: str, sentence: Callable[[str], str]) -> Iterator[None]:
    """Silence a library in the block, and turn whatever it raises into a `UserError`.

    Args:
        library: a name of `LOGGERS`.
        sentence: returns the message from the library's own, which is on one line and at most `MOST` characters long.

    Raises:
        UserError: from the block, or in place of any other error, also of those that are no `Exception`, such as the
            panics of libraries in Rust.
        KeyboardInterrupt: Ctrl-C, also if the library has turned it into another error.
    """
    try:
        with quiet(library):
            yield
    except (UserError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        raise UserError(sentence(one_line(error))) from error


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Silence the logs and warnings of a library in the block; several threads may be in such blocks.

    Args:
        library: a name of `LOGGERS`.
    """
    # A logger that is made before its library is imported would be of another class.
    names = [name for name in LOGGERS[library] if name.partition(".")[0] in sys.modules]
    if library == "orbax":  # before the warnings of the block are silenced, since what it sets must outlive that
        _drop_errors_of_closed_loops()
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(_silenced[name])
        stack.enter_context(_without_warnings)
        yield


@contextlib.contextmanager
def orbax_write_errors(path: FilePath, hint: str = GIVE_ROOM) -> Iterator[None]:
    """Turn any error of a block in which Orbax writes into one sentence, without what it and TensorStore log.

    Args:
        path: the file or folder that the message names.
        hint: how to fix it.

    Raises:
        UserError: `path` cannot be written.
    """
    with quiet("orbax"), write_errors(path, hint, errors=Exception):
        yield


def one_line(error: BaseException) -> str:
    """Return the message of a library on one line, without control characters, cut to `MOST` characters."""
    if isinstance(error, MemoryError):
        return "it does not fit into the free memory"
    words = escaped(" ".join(str(error).split())) or type(error).__name__
    words = re.sub(" object at 0x[0-9a-f]+", "", words)  # of Python's own description of an object
    return words if len(words) <= MOST else f"{words[: MOST - 3]}..."


@functools.cache
def _drop_errors_of_closed_loops() -> None:
    """Drop what TensorStore reports, maybe later: reads and writes that Orbax no longer waits for after a failed one.

    They report to the event loop of Orbax, which is closed by then; TensorStore prints that by `sys.unraisablehook`.
    Tasks and futures that failed before are logged when Python collects them, and coroutines that were not begun are
    warned about.
    """
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
    hook = sys.unraisablehook

    def print_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            hook(unraisable)

    sys.unraisablehook = print_others
    logging.getLogger("asyncio").addFilter(lambda record: not re.search(_OF_TENSORSTORE, record.getMessage()))


def _is_interrupt(error: BaseException) -> bool:
    """Return whether an error was raised because of Ctrl-C."""
    cause: BaseException | None = error
    for _ in range(20):  # a chain may be a circle
        if cause is None:
            return False
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class _Shared:
    """A context manager for the process that threads share: the first one enters it, and the last one leaves it."""

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[None]]):
        self._make, self._lock, self._inside = make, threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._context = self._make()
                self._context.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._context.__exit__(None, None, None)


def _silence(name: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def silent() -> Iterator[None]:
        logger = logging.getLogger(name)
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)

    return silent


@contextlib.contextmanager
def _ignore_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FileWarning)  # ours, from this thread or another one
        yield


_silenced = {name: _Shared(_silence(name)) for names in LOGGERS.values() for name in names}
_without_warnings = _Shared(_ignore_warnings)
