"""Abstract runs have the shapes of real ones."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.config import ClipConfig, DataConfig
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clips import clip_shapes, cut_clip
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training.setup import abstract_run, complete_config, set_up
from sam2_3dmed_jax.training.sharding import make_mesh
from tests.helpers.prepared_files import write_prepared


def test_a_clip_has_the_shapes_of_clip_shapes(one_step):
    from sam2_3dmed_jax.data.prepared import read_prepared

    data = replace(one_step.data, slices=5)
    dataset = read_prepared(one_step.data.path)
    reader = CaseReader(dataset, data, 64)
    clip = cut_clip(reader, dataset.cases[0], data, np.random.default_rng(0))
    expected = clip_shapes(data, 64, reader.stored_slices).items()
    shapes = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in expected}
    assert shapes == {name: (value.shape, value.dtype) for name, value in clip.items()}


def test_an_abstract_run_has_shapes_dtypes_and_shardings_of_the_real_one(one_step):
    config = replace(one_step, training=replace(one_step.training, ema=0.9))
    real = set_up(config)
    run = abstract_run(config, make_mesh(config.mesh))
    expected, actual = ((tree.state, tree.frozen) for tree in (run, real))
    for abstract, array in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        assert (abstract.shape, abstract.dtype, abstract.sharding) == (array.shape, array.dtype, array.sharding)
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    pretrained = replace(config, model=replace(config.model, init="not/here"))
    assert any(path.startswith("image_encoder.") for path in abstract_run(pretrained, make_mesh(config.mesh)).frozen)


def test_the_slice_context_attends_over_the_clips_slices_and_another_window_is_refused(one_step):
    def with_window(window):
        srpp = replace(one_step.model.slice_position, window=window)
        return one_step.replace(model=replace(one_step.model, slice_position=srpp))

    slices = one_step.data.slices
    assert complete_config(with_window(None)).model.slice_position.window == slices
    assert complete_config(with_window(slices)) == complete_config(with_window(None))
    with pytest.raises(UserError, match=r"model\.slice_position\.window: it is 7 and data\.slices is 2.*leave it out"):
        complete_config(with_window(7))


def test_zoomed_clips_and_cached_features_are_refused_together(one_step):
    data = replace(one_step.data, features="features", clips=replace(one_step.data.clips, zoom_probability=0.5))
    with pytest.raises(UserError, match=r"data\.clips\.zoom_probability: zoomed clips need the slices.*leave out one"):
        complete_config(replace(one_step, data=data))


def test_zoomed_clips_of_slices_of_the_image_size_have_the_shapes_of_clip_shapes(tmp_path):
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[2:5, 20:40, 20:40] = 1
    dataset = write_prepared(tmp_path, {"x": (labels.astype(np.int16), labels)}, {1: "organ"})
    data = DataConfig(slices=3, clips=ClipConfig(zoom_probability=1.0))
    reader = CaseReader(dataset, data, 64)
    clip = cut_clip(reader, dataset.cases[0], data, np.random.default_rng(0))
    expected = clip_shapes(data, 64, reader.stored_slices).items()
    assert {name: value.shape for name, value in clip.items()} == {name: shape for name, (shape, _) in expected}
    whole = CaseReader(dataset, DataConfig(), 64).stored_slices
    assert "vertical" in clip and "vertical" not in clip_shapes(data, 64, whole)
