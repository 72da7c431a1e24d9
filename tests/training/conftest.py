"""One small run for all tests of a run's folder, whose train step is compiled once."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from filelock import FileLock

from sam2_3dmed_jax.config import (
    ClipConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SplitConfig,
    SrppConfig,
    TrainingConfig,
)
from sam2_3dmed_jax.data.case_reader import StoredSlices
from sam2_3dmed_jax.phantom import make_case
from sam2_3dmed_jax.training.compilation import compile_step
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.setup import Setup, set_up
from tests.helpers.prepared_files import write_prepared

PHANTOM_SLICES = StoredSlices(48, 48, resized=True)


@dataclass(frozen=True)
class Small:
    """A run of twelve steps over one case, validated on another; two are held out."""

    config: ExperimentConfig
    compiled: Setup

    def setup(self, step: Callable[..., Any] | None = None, **changes: Any) -> Setup:
        """A setup for one run; `changes` are fields of `training` that do not affect the step."""
        config = self.config.replace(training=replace(self.config.training, **changes))
        state = jax.tree.map(jnp.copy, self.compiled.state)
        return replace(self.compiled, config=config, state=state, step=step or self.compiled.step)

    def train(self, run: Path, progress: Callable[..., None] | None = None, profile: int = 0, **changes: Any) -> Path:
        setup = self.setup(**changes)
        return train(setup.config, run, progress, setup=setup, profile=profile)


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    data = tmp_path_factory.mktemp("data") / "phantom"
    write_prepared(data, {f"p{seed}": make_case(seed, "spleen", 48)[:2] for seed in range(4)}, {1: "spleen"})
    return ExperimentConfig(
        model=ModelConfig("nano", 64, slice_position=SrppConfig(dim=16, layers=1)),
        data=DataConfig(path=str(data), slices=2, split=SplitConfig(folds=2, inner_fraction=0.5)),
        training=TrainingConfig(
            steps=12,
            batch_size=2,
            warmup_steps=1,
            log_every=1,
            checkpoint_every=3,
            validate_every=5,
            validation_clips=3,
            images_every=5,
        ),
    )


@pytest.fixture(scope="session")
def small(small_config: ExperimentConfig) -> Small:
    # One worker compiles on all cores while the others wait, and these then load the program from the cache.
    with FileLock(Path(os.environ["SAM2_3DMED_CACHE"]).with_suffix(".lock")):
        compiled = compile_step(set_up(small_config), PHANTOM_SLICES)
    return Small(compiled.config, compiled)


@pytest.fixture(scope="session")
def whole(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without an interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    small.train(run, profile=2)
    return run


@pytest.fixture(scope="session")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """One step on two phantoms without SRPP and BD, which compiles fastest."""
    data = tmp_path_factory.mktemp("data") / "phantom"
    write_prepared(data, {f"p{seed}": make_case(seed, "spleen", 48)[:2] for seed in (0, 1)}, {1: "spleen"})
    return ExperimentConfig(
        model=ModelConfig("nano", 64, srpp=False, bd=False, slice_position=SrppConfig(dim=16, layers=1)),
        data=DataConfig(path=str(data), slices=2, clips=ClipConfig(objects=2), split=SplitConfig(folds=2)),
        training=TrainingConfig(steps=1, batch_size=2, warmup_steps=1),
    )
