"""Counting of compilations, reads of executables from the persistent cache included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """Yield a list that gets the name of each program that this process compiles in the block."""
    names: list[str] = []

    def on_duration(event: str, duration: float, **details: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name", "a program")))

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
