"""Persistent compilation cache of XLA programs, so that a second run of a command compiles nothing."""

from __future__ import annotations

from pathlib import Path

from sam2_3dmed_jax.runtime.cache_folder import cache_folder


def folder() -> Path:
    """Return the folder of compiled programs."""
    return cache_folder() / "xla"


def enable_by_default() -> None:
    """Enable the cache in a Python session, unless the user has configured the cache of JAX or disabled it."""
    import jax

    enabled: bool = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    folder_of_user: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if enabled and not folder_of_user:
        enable()


def enable() -> None:
    """Store every program that JAX compiles from now on, however small."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
