"""A run's train step, compiled before its first batch; on CPU by another process, which leaves it in the cache.

XLA's compiler leaves the C library's heap full of small holes, which every allocation of every later step searches:
with `nano` at 128 px a step takes 0.42 s in the process that compiled it, and 0.15 s in one that read it from the
persistent cache (two cores, glibc). A heap ends with its process.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.training.setup import Setup, abstract_batch, abstract_run
from sam2_3dmed_jax.training.sharding import make_mesh

CACHE = "jax_compilation_cache_dir"
LONG = 100  # steps that are worth the other process's start, some ten seconds


def pays(steps: int) -> bool:
    """Whether so many steps are run faster if another process compiles them: on one CPU, with a persistent cache."""
    alone = jax.default_backend() == "cpu" and jax.process_count() == 1
    return alone and steps >= LONG and bool(_cache())


def compile_step(setup: Setup) -> Setup:
    """Compile a run's train step, or read it from the persistent cache.

    Returns:
        For `train`, once: its state is donated to the first step.
    """
    assert isinstance(setup.step, jax.stages.Wrapped), "it is compiled already"
    batch = abstract_batch(setup.config, setup.sharding)
    lowered = setup.step.lower(setup.state, setup.frozen, batch)
    if pays(setup.config.training.steps):
        _compile_apart(setup.config, lowered.as_text())
    return replace(setup, step=lowered.compile())


def _compile_apart(config: ExperimentConfig, program: str) -> None:
    """Let another process fill the cache. If it cannot, nothing is lost: this one compiles then."""
    cache = _cache()
    # JAX tells nobody what its cache holds, so a mark beside it does.
    name = hashlib.sha256(f"{jax.__version__} {jax.device_count()} {program}".encode()).hexdigest()
    mark = Path(cache) / f"train_step-{name}"
    if mark.exists():
        return
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps(config),
        capture_output=True,
        env={**os.environ, **settings},
    )
    if done.returncode == 0:
        mark.touch()


def _cache() -> str:
    return getattr(jax.config, CACHE) or ""


def _main() -> None:
    config = pickle.load(sys.stdin.buffer)  # of `_compile_apart`
    run = abstract_run(config, make_mesh(config.mesh))
    run.step.lower(run.state, run.frozen, run.batch).compile()


if __name__ == "__main__":
    _main()
