"""What is told of a run without data or weights is what the run then has."""

from dataclasses import replace

import jax
import numpy as np

from sam2_3dmed_jax.data.clips import clip_shapes, cut_clip
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.training.setup import abstract_run, set_up
from sam2_3dmed_jax.training.sharding import make_mesh


def test_a_clip_has_the_shapes_that_are_told_without_data(one_step):
    from sam2_3dmed_jax.data.prepared import read_prepared

    data = replace(one_step.data, slices=5)
    dataset = read_prepared(one_step.data.path)
    clip = cut_clip(ModelView(dataset, data, 64), dataset.cases[0], data, np.random.default_rng(0))
    told = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in clip_shapes(data, 64).items()}
    assert told == {name: (value.shape, value.dtype) for name, value in clip.items()}


def test_an_abstract_run_has_the_shapes_dtypes_and_places_of_the_real_one_and_reads_no_weights(one_step):
    config = replace(one_step, training=replace(one_step.training, ema=0.9))
    real = set_up(config)
    run = abstract_run(config, make_mesh(config.mesh))
    told, made = ((tree.state, tree.frozen) for tree in (run, real))
    for abstract, array in zip(jax.tree.leaves(told), jax.tree.leaves(made), strict=True):
        assert (abstract.shape, abstract.dtype, abstract.sharding) == (array.shape, array.dtype, array.sharding)
    assert jax.tree.structure(told) == jax.tree.structure(made)
    pretrained = replace(config, model=replace(config.model, init="not/here"))
    assert any(path.startswith("image_encoder.") for path in abstract_run(pretrained, make_mesh(config.mesh)).frozen)
