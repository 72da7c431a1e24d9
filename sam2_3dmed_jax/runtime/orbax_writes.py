"""Failed writes of Orbax as one sentence, without the tracebacks of the writes that end later.

Orbax writes all arrays at the same time in an event loop and closes the loop when the first write fails. TensorStore
then prints a traceback from its own threads for each of the other writes, hundreds of lines, also after the error was
raised. That is why the hook stays installed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

from sam2_3dmed_jax.runtime.atomic_files import GIVE_ROOM, FilePath, write_errors

_CLOSED = "Event loop is closed"


@contextlib.contextmanager
def orbax_write_errors(path: FilePath, hint: str = GIVE_ROOM) -> Iterator[None]:
    """Turn any error of a block in which Orbax writes into a `UserError`.

    Args:
        path: the file or folder that the message names.
        hint: how to fix it.

    Raises:
        UserError: `path` cannot be written.
    """
    if sys.unraisablehook is not _hook:
        global _before
        _before, sys.unraisablehook = sys.unraisablehook, _hook
    with _silent_log(), write_errors(path, hint, errors=Exception):
        yield


@contextlib.contextmanager
def _silent_log() -> Iterator[None]:
    """Keep Orbax from logging the errors that it also raises."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


_before = sys.__unraisablehook__


def _hook(raised: sys.UnraisableHookArgs) -> None:
    """Print an error that nothing can catch, as before, unless a thread of TensorStore finds the loop closed."""
    late = isinstance(raised.exc_value, RuntimeError) and str(raised.exc_value) == _CLOSED
    if not late or threading.current_thread() is threading.main_thread():
        _before(raised)
