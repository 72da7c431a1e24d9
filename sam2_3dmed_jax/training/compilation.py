"""Compilation of the train step before the first batch; on CPU in another process, through the persistent cache.

XLA's compiler leaves the heap of the C library fragmented, which slows every allocation of later steps: with `nano` at
128 px a step takes 0.42 s in the process that has compiled it, and 0.15 s in a process that reads it from the
persistent cache (two cores, glibc).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.case_reader import StoredSlices
from sam2_3dmed_jax.data.clip_lengths import clip_lengths
from sam2_3dmed_jax.runtime import compilations
from sam2_3dmed_jax.runtime.hashing import sha256_of_text
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.training.setup import Setup, abstract_batch, abstract_run
from sam2_3dmed_jax.training.sharding import batch_sharding, make_mesh
from sam2_3dmed_jax.training.step import TrainState
from sam2_3dmed_jax.training.unroll import Batch

CACHE = "jax_compilation_cache_dir"
LONG = 100  # steps from which the start of the other process, some ten seconds, pays off


def pays_off(steps: int) -> bool:
    """Return whether another process should compile for so many steps: on one CPU, with a persistent cache."""
    alone = jax.default_backend() == "cpu" and jax.process_count() == 1
    return alone and steps >= LONG and bool(_cache())


def compile_step(setup: Setup, stored: StoredSlices) -> Setup:
    """Compile a run's train step for each length of clips, or read it from the persistent cache.

    Args:
        setup: of the run.
        stored: form of the stored slices of its dataset (`CaseReader.stored_slices`).

    Returns:
        The setup with the compiled step. `train` can use it once, because the first step donates its state.
    """
    assert isinstance(setup.step, jax.stages.Wrapped), "the step is already compiled"
    steps = {}
    for slices in clip_lengths(setup.config.data):
        batch = abstract_batch(setup.config, setup.sharding, stored, slices)
        lowered = setup.step.lower(setup.state, setup.frozen, batch)
        if pays_off(setup.config.training.steps):
            _compile_in_another_process(setup.config, stored, slices, lowered.as_text())
        steps[slices] = lowered.compile()
    return replace(setup, step=StepByLength(steps) if len(steps) > 1 else steps[setup.config.data.slices])


class StepByLength:
    """A compiled train step for each length of clips."""

    def __init__(self, steps: Mapping[int, jax.stages.Compiled]):
        """Store the steps by D."""
        self._steps = steps

    def __call__(self, state: TrainState, frozen: Weights, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Run the step of the batch's D."""
        result: tuple[TrainState, dict[str, jax.Array]] = self._steps[batch["slice_valid"].shape[1]](
            state, frozen, batch
        )
        return result


def _compile_in_another_process(config: ExperimentConfig, stored: StoredSlices, slices: int, program: str) -> None:
    """Let another process fill the cache. If it fails, this process compiles."""
    cache = _cache()
    # JAX does not report what its cache contains, so an empty file in it marks the program.
    name = sha256_of_text(f"{jax.__version__} {jax.device_count()} {program}")
    mark = Path(cache) / f"train_step-{name}"
    if mark.exists():
        return
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    with compilations.in_another_process("train_step"):
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=pickle.dumps((config, stored, slices)),
            capture_output=True,
            env={**os.environ, **settings},
        )
    if done.returncode == 0:
        mark.touch()


def _cache() -> str:
    return getattr(jax.config, CACHE) or ""


def _main() -> None:
    config, stored, slices = pickle.load(sys.stdin.buffer)  # from `_compile_in_another_process`
    mesh = make_mesh(config.mesh)
    run = abstract_run(config, mesh, stored)
    sharding = batch_sharding(mesh, config.training.batch_size, config.training.accumulation)
    run.step.lower(run.state, run.frozen, abstract_batch(config, sharding, stored, slices)).compile()


if __name__ == "__main__":
    _main()
