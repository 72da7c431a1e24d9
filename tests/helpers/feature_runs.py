"""A dataset of small phantoms and an experiment with a frozen encoder, for tests of the feature cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, SplitConfig, SrppConfig, TrainingConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import StoredSlices
from sam2_3dmed_jax.data.clips import clip_shapes
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.phantom import make_case
from sam2_3dmed_jax.training.dataset import open_case_reader, split_cases
from sam2_3dmed_jax.training.features.build import open_features
from sam2_3dmed_jax.training.features.cache import FeatureCache
from sam2_3dmed_jax.training.features.encoder import feature_shapes
from sam2_3dmed_jax.training.parameter_groups import FROZEN_PRETRAINED
from sam2_3dmed_jax.training.setup import Setup, set_up
from sam2_3dmed_jax.training.step import Step
from tests.helpers.prepared_files import write_prepared
from tests.helpers.quick import QUICK

DEPTH = 10  # slices of each phantom
PHANTOM_SLICES = StoredSlices(48, 48, resized=True)


def experiment(folder: Path) -> ExperimentConfig:
    """An experiment on two of three cases, with their features in `folder/features`."""
    cases = {}
    for seed in range(3):
        values, labels, _ = make_case(seed, "spleen", 48)
        slices = np.linspace(0, len(values) - 1, DEPTH).astype(int)
        cases[f"p{seed}"] = values[slices], labels[slices]
    write_prepared(folder / "data", cases, {1: "spleen"})
    return ExperimentConfig(
        model=ModelConfig("nano", 64, slice_position=SrppConfig(dim=16, layers=1)),
        data=DataConfig(
            path=str(folder / "data"),
            slices=2,
            split=SplitConfig(folds=3),
            features=str(folder / "features"),
            augmentation=NO_AUGMENTATION,
        ),
        training=TrainingConfig(
            steps=4, batch_size=2, checkpoint_every=2, log_every=1, warmup_steps=1, frozen=FROZEN_PRETRAINED
        ),
    )


def without_features(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment without cached features."""
    return config.replace(data=replace(config.data, features=""))


def build_features(config: ExperimentConfig, setup: Setup, progress=None) -> FeatureCache:
    """The features of the experiment's cases, computed if they are missing."""
    reader = open_case_reader(read_prepared(config.data.path), config)
    cases, _, _ = split_cases(reader, config)
    features = open_features(config, setup.encoder, setup.devices, reader, cases, progress)
    assert features is not None
    return features


def quick_step(config: ExperimentConfig, dtype: Any = None) -> Step:
    """The experiment's step, compiled without optimisation, which takes half the time.

    `dtype` replaces the dtype of the cached features.
    """
    setup = set_up(config)
    features = feature_shapes(config.model) if config.data.features else None
    shapes = clip_shapes(config.data, 64, PHANTOM_SLICES, features)
    if dtype:
        shapes |= {name: (shapes[name][0], dtype) for name in features or ()}
    batch = {
        name: jax.ShapeDtypeStruct((config.training.batch_size, *shape), own, sharding=setup.sharding)
        for name, (shape, own) in shapes.items()
    }
    return setup.step.lower(setup.state, setup.frozen, batch).compile(QUICK)
