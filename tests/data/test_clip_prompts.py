"""Prompts of training clips beyond the first point or box: further slices, masks, and corrected slices."""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax.config import ClipConfig, CorrectionConfig, DataConfig, PromptConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clip_prompts import AT_CENTRE, NO_STEP, check_prompts, prompt_shapes
from sam2_3dmed_jax.data.clips import cut_clip
from sam2_3dmed_jax.errors import UserError
from tests.helpers.prepared_files import write_prepared

ALL = PromptConfig(
    mask_prompt_probability=0.3,
    prompted_slices=3,
    corrections=CorrectionConfig(clicks=4, corrected_slices=2, centre_click_probability=0.25),
)
PLAIN = DataConfig(slices=6, clips=ClipConfig(objects=2), augmentation=NO_AUGMENTATION)
DATA = replace(PLAIN, prompts=ALL)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A function that cuts many clips of a case with two objects, unrendered."""
    labels = np.zeros((14, 32, 32), np.uint8)
    labels[4:10, 8:20, 10:26] = 1
    labels[8:12, 24:30, 4:12] = 2
    grey = np.broadcast_to(np.arange(14, dtype=np.int16)[:, None, None], labels.shape)
    folder = tmp_path_factory.mktemp("data") / "prepared"
    dataset = write_prepared(folder, {"case": (grey, labels)}, {1: "organ", 2: "tumour"})

    def cut_many(data=DATA, count=150):
        reader = CaseReader(dataset, data, 32)
        return [cut_clip(reader, dataset.cases[0], data, np.random.default_rng(i)) for i in range(count)]

    return cut_many


@pytest.fixture(scope="module")
def clips(cut):
    return cut()


def has_object(clip, step, k):
    return bool(((clip["labels"][step] >> k) & 1).any())


def test_clips_have_the_fields_and_shapes_of_the_configuration(cut, clips):
    for data, found in ((DATA, clips), (PLAIN, cut(PLAIN, 5))):
        for clip in found:
            for name, (shape, dtype) in prompt_shapes(data).items():
                assert clip[name].shape == shape and clip[name].dtype == dtype, name
    assert "clicks" not in prompt_shapes(PLAIN) and "further_step" not in prompt_shapes(PLAIN)


def test_further_prompted_slices_are_later_slices_that_show_the_object(clips):
    numbers = set()
    for clip in clips:
        for k in np.flatnonzero(clip["object_valid"]):
            steps = [int(step) for step in clip["further_step"][k] if step != NO_STEP]
            numbers.add(len(steps))
            assert steps == sorted(set(steps)) and all(step > clip["prompt_step"][k] for step in steps)
            for slot, step in enumerate(steps):
                assert has_object(clip, step, k)
                x, y = np.round(clip["further_coords"][k, slot, 0]).astype(int)
                if clip["further_point_labels"][k, slot, 0] == 1:
                    assert (clip["labels"][step, y, x] >> k) & 1
    assert numbers == {0, 1, 2}


def test_corrected_slices_are_unprompted_slices_of_the_volume_behind_the_first_prompt(clips):
    numbers = set()
    for clip in clips:
        depth = int(clip["slice_valid"].sum())
        for k in np.flatnonzero(clip["object_valid"]):
            steps = [int(step) for step in clip["corrected_step"][k] if step != NO_STEP]
            numbers.add(len(steps))
            assert not set(steps) & {int(clip["prompt_step"][k]), *clip["further_step"][k].tolist()}
            assert all(clip["prompt_step"][k] < step < depth for step in steps)
    assert numbers == {0, 1, 2}


def test_numbers_and_draws_of_clicks_have_the_configured_distribution(clips):
    valid = np.array([clip["object_valid"] for clip in clips])
    clicks = np.array([clip["clicks"] for clip in clips])[valid]
    draws = np.array([clip["click_draw"] for clip in clips])[valid]
    assert set(np.unique(clicks)) == {0, 1, 2, 3, 4}
    assert np.mean(draws == AT_CENTRE) == pytest.approx(0.25, abs=0.03)
    uniform = draws[draws != AT_CENTRE]
    assert uniform.min() >= 0 and uniform.max() < 1 and uniform.mean() == pytest.approx(0.5, abs=0.03)


def test_a_slice_with_a_mask_prompt_gets_no_clicks(clips):
    masks = [(clip, k) for clip in clips for k in np.flatnonzero(clip["mask_prompt"])]
    objects = sum(int(clip["object_valid"].sum()) for clip in clips)
    assert len(masks) / objects == pytest.approx(0.3, abs=0.08)
    assert all(clip["clicks"][k, 0] == 0 for clip, k in masks)


def test_an_absent_object_is_prompted_once_by_a_point(cut):
    for clip in cut(replace(DATA, prompts=replace(ALL, absent_object_probability=1.0)), 40):
        for k in np.flatnonzero(clip["object_valid"]):
            assert not clip["mask_prompt"][k] and (clip["further_step"][k] == NO_STEP).all()
            assert not any(has_object(clip, step, k) for step in range(6))


def test_first_prompts_do_not_depend_on_whether_the_others_are_configured(cut, clips):
    for clip, plain in zip(clips, cut(PLAIN), strict=True):
        for name in prompt_shapes(PLAIN):
            np.testing.assert_array_equal(clip[name], plain[name], err_msg=name)


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (PromptConfig(prompted_slices=7), r"data\.prompts\.prompted_slices: 7 of the 6 slices of a clip; use 1 to 6"),
        (PromptConfig(prompted_slices=0), r"prompted_slices: 0 of the 6 slices"),
        (PromptConfig(corrections=CorrectionConfig(clicks=13)), r"corrections\.clicks: 13 on a slice; use 0 to 12"),
        (PromptConfig(corrections=CorrectionConfig(clicks=1, corrected_slices=6)), r"corrected_slices: 6 of the 6"),
        (PromptConfig(corrections=CorrectionConfig(corrected_slices=1)), r"corrected_slices needs clicks; set clicks"),
    ],
)
def test_numbers_that_do_not_fit_a_clip_are_refused(prompts, sentence):
    with pytest.raises(UserError, match=sentence):
        check_prompts(replace(PLAIN, prompts=prompts))
