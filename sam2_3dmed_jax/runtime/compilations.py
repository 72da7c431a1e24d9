"""XLA compilations in progress, and a line on stderr that explains a long one.

JAX reports when a program has been lowered, when its executable is requested and when the executable is there
(`jax.monitoring`). The time of a compilation is estimated from the time of the lowering: their ratio in the last
compilation of a program with that name is stored next to the persistent cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import compilation_cache
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.user_files import read_json, typed

PATIENCE = 1.5  # seconds until a compilation is announced; a read from the cache is shorter
# Seconds of compilation per second of lowering, for programs that were never compiled here: the middle of the ratios of
# `nano` at 128 px, which are 13 for the encoder and 45 for propagation (two cores).
RATIO = 20.0
RATIOS = "compile_ratios.json"  # in the folder of the cache: {name: seconds of compilation per second of lowering}

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_REQUESTED = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"
_READY = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True, eq=False)
class _Compilation:
    """One compilation, or one read from the cache."""

    name: str
    lowering: float  # seconds; 0: unknown
    start: float  # of `time.monotonic`
    announcement: threading.Timer


class _Watch:
    """The compilations in progress, one per thread at most."""

    def __init__(self) -> None:
        self.running: dict[int, _Compilation] = {}
        self._lowered: dict[int, tuple[str, float]] = {}  # by thread: the last lowered program and the seconds it took

    def on_event(self, event: str, **_: str | int) -> None:
        if event == _REQUESTED:
            name, _seconds = self._lowered.get(threading.get_ident(), ("a program", 0.0))
            self.begin(name)
        elif event == _HIT:
            self.end(learn=False)

    def on_duration(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == _LOWERED:
            self._lowered[threading.get_ident()] = _plain_name(str(details.get("fun_name", "a program"))), duration_secs
        elif event == _READY:
            self.end()

    def begin(self, name: str) -> None:
        thread = threading.get_ident()
        _, lowering = self._lowered.get(thread, ("", 0.0))
        announcement = threading.Timer(PATIENCE, _announce, (name, lowering))
        announcement.daemon = True
        self.running[thread] = _Compilation(name, lowering, time.monotonic(), announcement)
        announcement.start()

    def end(self, learn: bool = True) -> None:
        compilation = self.running.pop(threading.get_ident(), None)
        if compilation is None:
            return
        compilation.announcement.cancel()
        seconds = time.monotonic() - compilation.start
        if learn and seconds > PATIENCE and compilation.lowering:
            _write_ratio(compilation.name, seconds / compilation.lowering)


_watch: _Watch | None = None


def announce() -> None:
    """Announce all long compilations of this process from now on."""
    global _watch
    if _watch is not None:
        return
    import jax

    _watch = _Watch()
    jax.monitoring.register_event_listener(_watch.on_event)
    jax.monitoring.register_event_duration_secs_listener(_watch.on_duration)


@contextlib.contextmanager
def in_another_process(name: str) -> Iterator[None]:
    """Announce the block, which waits until another process has compiled the last lowered program."""
    if _watch is None:
        yield
        return
    _watch.begin(name)
    try:
        yield
    finally:
        _watch.end()


def in_progress() -> frozenset[object]:
    """Return the compilations in progress, which are equal in two calls only if they are the same."""
    return frozenset(_watch.running.values()) if _watch else frozenset()


def _announce(name: str, lowering: float) -> None:
    seconds = _round_seconds(lowering * _ratios().get(name, RATIO))
    about = f"about {seconds} s, " if lowering else ""
    print(f"compiling {name} ({about}cached afterwards)", file=sys.stderr, flush=True)


def _round_seconds(seconds: float) -> int:
    """Return an estimate with one or two digits, and at least the seconds that have passed already."""
    step = 1 if seconds < 10 else 5 if seconds < 60 else 10
    return max(round(seconds / step) * step, 2)


def _plain_name(name: str) -> str:
    """Return `jit(encode_block)` as `encode_block`."""
    return re.sub(r"^\w+\((.*)\)$", r"\1", name)


def _ratios() -> dict[str, float]:
    file = compilation_cache.folder() / RATIOS
    try:
        return typed(read_json(file, ""), dict[str, float], str(file), "")
    except UserError:  # estimates are not worth an error
        return {}


def _write_ratio(name: str, ratio: float) -> None:
    path: Path = compilation_cache.folder() / RATIOS
    if not os.access(path.parent, os.W_OK):
        return
    with contextlib.suppress(UserError):  # estimates are not worth an error
        write_text(path, json.dumps({**_ratios(), name: round(ratio, 1)}, indent=2))
