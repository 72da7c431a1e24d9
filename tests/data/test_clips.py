"""Clips: what they hold, and that they depend on the seed alone."""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.clips import PreparedCase, cut_clip
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.errors import UserError

STILL = DataConfig(slices=5, objects=2, rotation=0, scaling=0, shift=0, intensity=0, noise=0)


def make_case(first=4, last=9, depth=14, size=32):
    """A ball-like object on slices first..last, a second one on slice 8 and beyond; each slice's grey is its index."""
    labels = np.zeros((depth, size, size), np.uint8)
    labels[first : last + 1, 8:20, 10:26] = 1
    labels[8:12, 24:30, 4:12] = 2
    slices = np.broadcast_to(np.arange(depth, dtype=np.float16)[:, None, None] / 100, labels.shape)
    areas = {value: (labels == value).sum((1, 2)) for value in (1, 2)}
    return PreparedCase("case", slices, labels, np.arange(depth, dtype=np.float32) * 2.5, (1.0, 1.0), areas)


def clips(count=200, config=STILL, case=None):
    case = case or make_case()
    return [cut_clip(case, config, np.random.default_rng(i)) for i in range(count)]


def test_the_first_slice_holds_the_prompted_object_and_prompts_lie_on_their_objects():
    for clip in clips():
        assert clip["object_valid"][0] and clip["prompt_step"][0] == 0
        for k in np.flatnonzero(clip["object_valid"]):
            mask = clip["masks"][clip["prompt_step"][k], k]
            assert mask.any() and not clip["masks"][: clip["prompt_step"][k], k].any()
            if clip["multimask"][k]:  # a point
                x, y = clip["coords"][k, 0].round().astype(int)
                assert mask[y, x] and clip["point_labels"][k, 0] == 1
            else:  # a box around it, within its jitter
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), columns.max(), rows.max()]
                np.testing.assert_allclose(clip["coords"][k, :2].ravel(), box, atol=3)


def test_walked_slices_keep_their_source_position_in_both_directions():
    directions = set()
    for clip in clips():
        valid = clip["slice_valid"]
        index = clip["slice_index"][valid]
        np.testing.assert_allclose(clip["position_mm"][valid], index * 2.5)
        np.testing.assert_allclose(clip["slices"][valid][:, 0, 0], index / 100, atol=1e-3)
        directions.add(float(np.sign(clip["slice_index"][1] - clip["slice_index"][0])))
    assert directions == {1.0, -1.0}


def test_some_clips_run_past_the_object_and_some_past_the_volume():
    long = make_case(first=1, last=12)
    long = replace(long, areas={1: long.areas[1]})
    ends = [clip["masks"][clip["slice_valid"]][-1, 0].any() for clip in clips(case=long)]
    assert 0.2 < np.mean(ends) < 0.9
    padded = [not clip["slice_valid"].all() for clip in clips(case=make_case(first=0, last=13))]
    assert 0.1 < np.mean(padded) < 0.9


def test_clips_of_an_absent_object_show_it_once_and_then_slices_anywhere_beyond_its_end():
    case = make_case(first=4, last=9, depth=40)
    case = replace(case, areas={1: case.areas[1]})
    gaps = set()
    for clip in clips(case=case, config=_with(absent=1.0, objects=1)):
        holds = clip["masks"][:, 0].any((1, 2))
        assert holds[0] and not holds[1:].any()
        index = clip["slice_index"].astype(int)
        gaps.add(int(index[1] - 10 if index[1] > 9 else 3 - index[1]))
    assert min(gaps) == 0 and 20 < max(gaps) <= 26  # right behind it, to where the clip fits at the end


def test_a_stride_is_drawn_and_kept_within_the_clip():
    strides = {
        abs(int(clip["slice_index"][1] - clip["slice_index"][0])) for clip in clips(config=_with(stride=2, absent=0.0))
    }
    assert strides == {1, 2}


def _with(**changes):
    return DataConfig(**{**vars(STILL), **changes})


def test_a_case_without_the_classes_is_refused():
    with pytest.raises(UserError, match="holds none of the classes"):
        cut_clip(
            PreparedCase("x", *[np.zeros((3, 8, 8))] * 2, np.zeros(3), (1, 1), {}), STILL, np.random.default_rng(0)
        )


def test_batches_depend_on_seed_and_number_alone_not_on_workers_or_where_one_starts():
    cases = [make_case(first, first + 4) for first in range(1, 8)]
    config = _with(rotation=5.0, noise=0.02)
    dataset = clip_batches(cases, config, 2, seed=3)
    straight = iterate(dataset, 0, workers=0)
    resumed = iterate(clip_batches(cases, config, 2, seed=3), 4, workers=3)
    batches = [next(straight) for _ in range(7)]
    for expected in batches[4:]:
        for name, value in next(resumed).items():
            np.testing.assert_array_equal(value, expected[name])
    assert batches[0]["slices"].shape == (2, 5, 32, 32)
    other = next(iterate(clip_batches(cases, config, 2, seed=4), 0, workers=0))
    assert not np.array_equal(other["slices"], batches[0]["slices"])
