"""Compilation of the train step of a long run in another process, on CPU."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sam2_3dmed_jax.data.case_reader import StoredSlices
from sam2_3dmed_jax.training import compilation
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.setup import set_up

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty persistent cache; the cache of other tests is restored afterwards."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update(SETTINGS[0], str(tmp_path / "cache"))
    jax.config.update(SETTINGS[1], 0.0)
    compilation_cache.reset_cache()  # a command of another test may have opened the user's cache
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def steps_in(cache: Path) -> set[str]:
    return {file.name for file in cache.glob("jit_train_step-*-cache")}


@pytest.mark.long
def test_a_long_run_reads_the_step_that_another_process_compiled(one_step, cache, tmp_path, monkeypatch):
    started = []
    run = subprocess.run

    def record_run(command, **arguments):
        result = run(command, **arguments)
        started.append((command, result.stderr, steps_in(cache)))
        return result

    monkeypatch.setattr(subprocess, "run", record_run)
    monkeypatch.setattr(compilation, "LONG", 1)
    setup = compilation.compile_step(set_up(one_step), StoredSlices(48, 48, resized=True))
    ((command, stderr, compiled),) = started
    assert command == [sys.executable, "-m", "sam2_3dmed_jax.training.compilation"]
    assert len(compiled) == 1, stderr.decode()
    train(one_step, tmp_path / "given", setup=setup)
    train(one_step, tmp_path / "again")  # starts no process, because the program is marked
    monkeypatch.setattr(compilation, "LONG", 2)
    train(one_step, tmp_path / "short")  # compiles at its first step
    assert len(started) == 1
    assert steps_in(cache) == compiled
    rows = [(tmp_path / name / "log.csv").read_text().rsplit(",", 1)[0] for name in ("given", "again", "short")]
    assert rows[0] == rows[1] == rows[2]  # without the seconds, the last column


@pytest.mark.slow
def test_only_long_runs_on_one_cpu_with_a_cache_use_another_process(cache, monkeypatch):
    assert compilation.pays_off(compilation.LONG)
    assert not compilation.pays_off(compilation.LONG - 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not compilation.pays_off(compilation.LONG)
    monkeypatch.undo()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not compilation.pays_off(compilation.LONG)
    monkeypatch.undo()
    jax.config.update(SETTINGS[0], None)
    assert not compilation.pays_off(compilation.LONG)
