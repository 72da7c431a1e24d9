"""Persistent compilation cache of XLA programs, so that a second run of a command compiles nothing."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Return the folder of compiled programs, in `$SAM2_3DMED_CACHE` or `~/.cache/sam2-3dmed`."""
    return Path(os.environ.get("SAM2_3DMED_CACHE") or Path.home() / ".cache" / "sam2-3dmed") / "xla"


def enable() -> None:
    """Store every program that JAX compiles from now on, however small."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
