"""The train step compiled before there are data is the one that the run then takes."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, SrppConfig, TrainingConfig
from sam2_3dmed_jax.data.clips import clip_shapes, cut_clip
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.setup import abstract_run, compile_ahead, set_up
from sam2_3dmed_jax.training.sharding import make_mesh
from sam2_3dmed_jax.volume.phantom import make_case
from tests.data.prepared_files import write_prepared


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "phantom"
    write_prepared(data, {f"p{seed}": make_case(seed, "spleen", 48)[:2] for seed in (0, 1)}, {1: "spleen"})
    return ExperimentConfig(
        model=ModelConfig("nano", 64, srpp=False, bd=False, slice_position=SrppConfig(dim=16, layers=1)),
        data=DataConfig(path=str(data), slices=2, objects=2, folds=2),
        training=TrainingConfig(steps=1, batch_size=2, warmup_steps=1),
    )


def test_a_clip_has_the_shapes_that_are_told_without_data(config):
    from sam2_3dmed_jax.data.store import read_prepared

    data = replace(config.data, slices=5)
    dataset = read_prepared(config.data.path)
    clip = cut_clip(ModelView(dataset, data, 64), dataset.cases[0], data, np.random.default_rng(0))
    told = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in clip_shapes(data, 64).items()}
    assert told == {name: (value.shape, value.dtype) for name, value in clip.items()}


def test_a_run_compiles_nothing_that_was_compiled_ahead(config, tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update(names[0], str(tmp_path / "cache"))
        compilation_cache.reset_cache()  # another test's command may have opened the user's own
        jax.config.update(names[1], 0.0)
        setup = compile_ahead(config)
        ahead = {file.name for file in (tmp_path / "cache").glob("jit_train_step-*-cache")}
        train(config, tmp_path / "run", setup=setup)
        train(config, tmp_path / "again")
        rows = [(tmp_path / name / "log.csv").read_text().rsplit(",", 1)[0] for name in ("run", "again")]
        assert rows[0] == rows[1]  # but for the seconds, which come last
        assert {file.name for file in (tmp_path / "cache").glob("jit_train_step-*-cache")} == ahead
        assert len(ahead) == 1
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_an_abstract_run_has_the_shapes_dtypes_and_places_of_the_real_one_and_reads_no_weights(config):
    config = replace(config, training=replace(config.training, ema=0.9))
    real = set_up(config)
    run = abstract_run(config, make_mesh(config.mesh))
    told, made = ((tree.state, tree.frozen) for tree in (run, real))
    for abstract, array in zip(jax.tree.leaves(told), jax.tree.leaves(made), strict=True):
        assert (abstract.shape, abstract.dtype, abstract.sharding) == (array.shape, array.dtype, array.sharding)
    assert jax.tree.structure(told) == jax.tree.structure(made)
    pretrained = replace(config, model=replace(config.model, init="not/here"))
    assert any(path.startswith("image_encoder.") for path in abstract_run(pretrained, make_mesh(config.mesh)).frozen)
