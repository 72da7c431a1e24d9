"""Progress on the console that stays silent for short work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sam2_3dmed_jax.runtime.progress import ConsoleProgress

if TYPE_CHECKING:
    from sam2_3dmed_jax.runtime.progress import Progress

SILENT_SECONDS = 2.0


@contextlib.contextmanager
def progress_of_long_work() -> Iterator[Progress]:
    """Yield a progress that is shown when one kind of work has taken longer than `SILENT_SECONDS`."""
    starts: dict[str, float] = {}
    with ConsoleProgress() as console:

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if time.monotonic() - starts.setdefault(what, time.monotonic()) > SILENT_SECONDS:
                console(what, done, total, note)

        yield report
