"""Rendering in compiled programs: equal to formulas on the host, and exactly in agreement with the host's prompts."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed_jax.config import AugmentationConfig, ClipConfig, DataConfig, PreprocessingConfig, PromptConfig
from sam2_3dmed_jax.data.case_reader import CaseReader, StoredSlices
from sam2_3dmed_jax.data.clips import clip_shapes, cut_clip
from sam2_3dmed_jax.data.masks import SliceMasks
from sam2_3dmed_jax.data.pipeline import clip_batches
from sam2_3dmed_jax.data.render import render_clips, rendered_clip
from sam2_3dmed_jax.data.warp import ONE
from sam2_3dmed_jax.volume import intensity
from tests.helpers.prepared_files import write_prepared

SIZE, DEPTH = 64, 9
CONFIG = DataConfig(
    slices=4,
    clips=ClipConfig(objects=2),
    preprocessing=PreprocessingConfig(window="40,300"),
    augmentation=replace(AugmentationConfig(), flip_probability=0.5, rotation=25.0),
)


def case(rows, columns, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-200, 300, (DEPTH, rows, columns)).astype(np.int16)
    labels = np.zeros(values.shape, np.uint8)
    smooth = ndimage.gaussian_filter(rng.random(values.shape), 2)
    labels[smooth > np.quantile(smooth, 0.7)] = 1
    labels[smooth > np.quantile(smooth, 0.9)] = 2
    return values, labels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Cases with slices of 97 x 73, 64 x 64 and 50 x 120 voxels."""
    cases = {"a": case(97, 73, 0), "b": case(64, 64, 1), "c": case(50, 120, 2)}
    return write_prepared(tmp_path_factory.mktemp("render") / "data", cases, {1: "organ", 2: "tumour"}, (2.5, 0.7, 0.9))


def host_slices(reader, case, clip, config):
    """The slices of a clip by formulas of NumPy and SciPy in float64, without noise."""
    index = clip["slice_index"][clip["slice_valid"]].astype(int)
    values = reader.dataset.read(case, index)[0]
    low, width = intensity.window_ends(reader.window(case))
    unit = np.clip((values.astype(np.float64) - low) / width, 0, 1)
    vertical, horizontal = (intensity.resize_matrix(n, SIZE).astype(np.float64) for n in values.shape[1:])
    unit = np.clip(vertical @ unit @ horizontal.T, 0, 1)
    matrix, offset = clip["inverse_map"][:, :2] / ONE, clip["inverse_map"][:, 2] / ONE
    moved = [ndimage.affine_transform(x, matrix, offset, order=1, mode="grid-constant") for x in unit]
    contrast, brightness, gamma, _ = clip["intensity"].astype(np.float64)
    return np.clip(np.array(moved) * contrast + brightness, 0, 1) ** gamma


def test_slices_equal_window_resize_warp_and_intensity_of_the_host(dataset):
    config = replace(CONFIG, augmentation=replace(CONFIG.augmentation, noise=0.0))
    reader = CaseReader(dataset, config, SIZE)
    for each in dataset.cases:
        for seed in range(4):
            clip = cut_clip(reader, each, config, np.random.default_rng(seed))
            slices = rendered_clip(clip, config.augmentation)["slices"]
            expected = host_slices(reader, each, clip, config)
            # Float32 values up to 1, summed over two axes, and interpolated; the exponent enlarges errors near 0.
            np.testing.assert_allclose(slices[clip["slice_valid"]], expected, rtol=0, atol=3e-6)
            assert not slices[~clip["slice_valid"]].any()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_masks_of_the_step_are_exactly_those_that_the_host_prompts(dataset, monkeypatch, probability):
    """Every mask that the host computes for a prompt equals the one that the compiled program computes."""
    prompts = PromptConfig(negative_point_probability=probability, box_prompt_probability=0.0)
    config = replace(CONFIG, prompts=prompts)
    reader, compared = CaseReader(dataset, config, SIZE), 0
    for each in dataset.cases:
        for seed in range(6):
            made = []
            original = SliceMasks.__init__
            monkeypatch.setattr(SliceMasks, "__init__", lambda self, *a: (made.append(self), original(self, *a))[1])  # noqa: B023
            clip = cut_clip(reader, each, config, np.random.default_rng(seed))
            monkeypatch.setattr(SliceMasks, "__init__", original)
            masks = rendered_clip(clip, config.augmentation)["masks"]
            host = next(x for x in made if x.inverse_map is clip["inverse_map"])
            for (step, target), mask in host._kept.items():
                same = [np.array_equal(mask, masks[step, k] > 0) for k in range(2)]
                assert any(same), (each.id, seed, step, target)
                compared += 1
            for k in np.flatnonzero(clip["object_valid"]):
                x, y = clip["coords"][k, 0].astype(int)
                assert masks[clip["prompt_step"][k], k, y, x]
    assert compared > 30


def test_cases_of_all_sizes_have_one_form_and_render_as_alone_in_their_dataset(dataset, tmp_path):
    config = replace(CONFIG, augmentation=replace(CONFIG.augmentation, noise=0.0))
    reader = CaseReader(dataset, config, SIZE)
    assert reader.stored_slices == StoredSlices(97, 120, resized=True)
    for each in dataset.cases:
        clip = cut_clip(reader, each, config, np.random.default_rng(0))
        shapes = {name: (value.shape, value.dtype.type) for name, value in clip.items()}
        assert shapes == clip_shapes(config, SIZE, reader.stored_slices)
        values = dataset.read(each, range(DEPTH))
        content = values[0].astype(np.int16), values[1]
        alone = write_prepared(tmp_path / each.id, {each.id: content}, dataset.labels, (2.5, 0.7, 0.9))
        own = CaseReader(alone, config, SIZE)
        assert own.stored_slices.resized == (each.id != "b")
        other = cut_clip(own, alone.cases[0], config, np.random.default_rng(0))
        one, two = (rendered_clip(x, config.augmentation) for x in (clip, other))
        np.testing.assert_array_equal(one["masks"], two["masks"])
        # Products with the zeros of the padding change the order of sums.
        np.testing.assert_allclose(one["slices"], two["slices"], rtol=0, atol=1e-6)


def test_a_batch_renders_as_its_clips_do_one_by_one(dataset):
    reader = CaseReader(dataset, CONFIG, SIZE)
    batch = clip_batches(reader, dataset.cases, CONFIG, 3, seed=0)[0]
    together = jax.jit(lambda x: render_clips(x, CONFIG.augmentation))(batch)
    for i in range(3):
        alone = rendered_clip({name: value[i] for name, value in batch.items()}, CONFIG.augmentation)
        np.testing.assert_array_equal(alone["masks"], together["masks"][i])
        np.testing.assert_allclose(alone["slices"], together["slices"][i], rtol=0, atol=1e-6)


def test_one_compiled_program_renders_the_clips_of_all_cases(dataset):
    reader = CaseReader(dataset, CONFIG, SIZE)
    batches = clip_batches(reader, dataset.cases, CONFIG, 1, seed=0)
    render = jax.jit(lambda x: render_clips(x, CONFIG.augmentation))
    for i in range(6):
        render(batches[i])
    assert render._cache_size() == 1
