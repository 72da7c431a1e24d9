"""Training clips: slices, masks, prompts and positions."""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax.config import ClipConfig, DataConfig, PreprocessingConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clips import cut_clip
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import intensity
from sam2_3dmed_jax.volume.intensity import resize_matrix
from tests.helpers.prepared_files import write_prepared
from tests.helpers.rendered import cut_and_render

PERCENTILES_OF_MR = PreprocessingConfig("0.5%,99.5%", "MR")
STILL = DataConfig(
    slices=5,
    clips=ClipConfig(objects=2),
    preprocessing=PreprocessingConfig(window="50,100"),  # HU 0 to 100 become 0 to 1
    augmentation=NO_AUGMENTATION,
)
LABELS = {1: "organ", 2: "tumour"}


def with_clips(**changes):
    return replace(STILL, clips=replace(STILL.clips, **changes))


def make_case(first=4, last=9, depth=14, size=32, second=True):
    """An object on slices first..last, another one on slices 8 to 11; the HU of each slice are its index."""
    labels = np.zeros((depth, size, size), np.uint8)
    labels[first : last + 1, 8:20, 10:26] = 1
    if second:
        labels[8:12, 24:30, 4:12] = 2
    return np.broadcast_to(np.arange(depth, dtype=np.int16)[:, None, None], labels.shape), labels


@pytest.fixture
def clips(tmp_path):
    """A function that cuts many clips of one case."""

    def cut(case=None, config=STILL, count=200, image_size=32):
        number = sum(1 for _ in tmp_path.iterdir())
        dataset = write_prepared(tmp_path / f"{number}", {"case": case or make_case()}, LABELS)
        reader = CaseReader(dataset, config, image_size)
        return [cut_and_render(reader, dataset.cases[0], config, np.random.default_rng(i)) for i in range(count)]

    return cut


def direction(clip):
    return float(np.sign(clip["slice_index"][1] - clip["slice_index"][0]))


def test_the_first_slice_shows_the_prompted_object_and_prompts_are_on_their_objects(clips):
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


def test_slices_keep_their_position_in_both_directions_of_propagation(clips):
    directions = set()
    for clip in clips():
        valid = clip["slice_valid"]
        index = clip["slice_index"][valid]
        np.testing.assert_allclose(clip["position_mm"][valid], index * 2.5)
        np.testing.assert_allclose(clip["slices"][valid][:, 0, 0], index / 100, atol=1e-6)  # rounding of the window
        directions.add(direction(clip))
    assert directions == {1.0, -1.0}


@pytest.mark.parametrize(("reverse", "expected"), [(0.0, {1.0}), (1.0, {-1.0})])
def test_the_probability_of_clips_from_superior_to_inferior_is_a_setting(clips, reverse, expected):
    assert {direction(clip) for clip in clips(config=with_clips(reverse_probability=reverse))} == expected


def test_small_objects_are_prompted_as_often_as_large_ones(clips):
    small = [clip["masks"][0, 0, 24:30].any() for clip in clips(count=400)]
    # The second object has 48 of 1000 labelled pixels. The tolerance is four SD of a fair draw of 400.
    assert np.mean(small) == pytest.approx(0.5, abs=0.1)


def tumour_in_an_organ():
    """A tumour, label 2, inside of an organ, label 1, on all its slices."""
    values, labels = make_case(first=4, last=9, second=False)
    labels[4:10, 11:16, 14:20] = 2
    return values, labels


@pytest.mark.parametrize("size", [32, 24])
@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_a_union_is_one_object_without_a_hole_and_its_tumour_another(clips, size, rotation):
    config = replace(with_clips(objects=2), classes=("1+2", 2))
    config = replace(config, augmentation=replace(NO_AUGMENTATION, rotation=rotation))
    larger = 0
    for clip in clips(tumour_in_an_organ(), config, count=40, image_size=size):
        organ_first = clip["masks"][:, 0].sum() > clip["masks"][:, 1].sum()
        larger += organ_first
        organ, tumour = clip["masks"][:, :: 1 if organ_first else -1].astype(bool).swapaxes(0, 1)
        assert (organ & tumour == tumour).all() and tumour[clip["prompt_step"][0]].any()
        if not rotation and size == 32:
            shown = organ[clip["slice_valid"]]
            assert set(shown.sum((1, 2))) <= {0, 12 * 16}  # the whole organ, without a hole
    assert 5 < larger < 35  # each of both is the prompted object of some clips


def test_the_default_objects_are_those_that_evaluate_prompts(tmp_path):
    case = {"x": tumour_in_an_organ()}
    readers = [
        CaseReader(write_prepared(tmp_path / organ, case, {1: organ, 2: "cancer"}), STILL, 32)
        for organ in ("pancreas", "lung")
    ]
    assert [reader.targets for reader in readers] == [((1, 2), (2,)), ((1,), (2,))]


def test_classes_have_the_vocabulary_of_evaluate_targets(tmp_path):
    dataset = write_prepared(tmp_path / "d", {"x": tumour_in_an_organ()}, LABELS)
    for classes in (("1+2,2",), ("1+2", 2), ("1+2", "2")):
        assert CaseReader(dataset, replace(STILL, classes=classes), 32).targets == ((1, 2), (2,))
    with pytest.raises(UserError, match=r"data\.classes: '1-2' is neither a label value nor one of"):
        CaseReader(dataset, replace(STILL, classes=("1-2",)), 32)


def test_some_clips_extend_beyond_the_object_and_some_beyond_the_volume(clips):
    ends = [clip["masks"][clip["slice_valid"]][-1, 0].any() for clip in clips(make_case(1, 12, second=False))]
    assert 0.2 < np.mean(ends) < 0.9
    padded = [clip for clip in clips(make_case(0, 13)) if not clip["slice_valid"].all()]
    assert 20 < len(padded) < 180
    for clip in padded:
        assert not clip["slices"][~clip["slice_valid"]].any() and not clip["masks"][~clip["slice_valid"]].any()


def test_clips_of_an_absent_object_show_it_once_then_slices_anywhere_beyond_its_end(clips):
    gaps = set()
    for clip in clips(make_case(4, 9, depth=40, second=False), with_clips(absent_probability=1.0, objects=1)):
        holds = clip["masks"][:, 0].any((1, 2))
        assert holds[0] and not holds[1:].any()
        index = clip["slice_index"].astype(int)
        gaps.add(int(index[1] - 10 if index[1] > 9 else 3 - index[1]))
    assert min(gaps) == 0 and 20 < max(gaps) <= 26  # from the next slice to the last position where the clip fits


def test_some_clips_have_slices_before_the_prompted_slice_for_context(clips):
    found = clips(config=with_clips(context_before_probability=1.0, absent_probability=0.0, objects=1), count=100)
    steps = {int(clip["prompt_step"][0]) for clip in found}
    assert steps == {1, 2}  # up to D / 2; the object starts on slice 4 of 14, so that no clip is at the volume's edge
    for clip in found:
        step = clip["prompt_step"][0]
        assert clip["object_valid"][0] and clip["masks"][step, 0].any()
        assert set(np.diff(clip["slice_index"])) <= {direction(clip)}


def test_a_clip_at_the_edge_of_the_volume_has_only_the_slices_before_the_prompt_that_exist(clips):
    config = with_clips(context_before_probability=1.0, absent_probability=0.0, past_end_probability=0.0, objects=1)
    for clip in clips(make_case(first=0, last=1, second=False), config, count=60):
        index, step = clip["slice_index"], clip["prompt_step"][0]
        before = index[step] if direction(clip) > 0 else 13 - index[step]
        assert step <= before and clip["slice_valid"][: step + 1].all()
        assert clip["masks"][step, 0].any()


def with_prompts(**changes):
    return replace(STILL, prompts=replace(STILL.prompts, **changes))


def test_a_negative_point_is_in_another_object_of_the_slice_or_outside_of_the_object(clips):
    config = with_prompts(negative_point_probability=1.0, box_prompt_probability=0.0)
    in_other = 0
    for clip in clips(config=config):
        for k in np.flatnonzero(clip["object_valid"]):
            step, (x, y) = clip["prompt_step"][k], clip["coords"][k, 1].astype(int)
            assert clip["point_labels"][k].tolist() == [1, 0, -1, -1] and clip["token_valid"][k].tolist() == [
                1,
                1,
                1,
                0,
            ]
            assert not clip["masks"][step, k, y, x] and not clip["multimask"][k]
            others = np.delete(clip["masks"][step], k, axis=0).any(0)
            assert not others.any() or others[y, x]
            in_other += others.any()
    assert in_other > 20


def test_absent_objects_are_clicked_outside_of_all_objects_and_have_empty_masks(clips):
    found = clips(config=with_prompts(absent_object_probability=0.5), count=100)
    _, labels = make_case()
    absent = 0
    for clip in found:
        for k in np.flatnonzero(clip["object_valid"]):
            if clip["masks"][:, k].any():
                continue
            absent += 1
            x, y = clip["coords"][k, 0].astype(int)
            assert clip["point_labels"][k, 0] == 1 and clip["multimask"][k]
            assert labels[int(clip["slice_index"][clip["prompt_step"][k]]), y, x] == 0
    assert 50 < absent < 120


def test_the_stride_is_drawn_once_per_clip(clips):
    cut = clips(config=with_clips(max_stride=2, absent_probability=0.0))
    assert {abs(int(clip["slice_index"][1] - clip["slice_index"][0])) for clip in cut} == {1, 2}


def test_slices_of_another_size_are_resized_as_in_prediction(clips):
    values, labels = make_case(depth=14, size=48)
    rng = np.random.default_rng(0)
    values = (values * 5 + rng.integers(0, 30, values.shape)).astype(np.int16)
    expected = intensity.prepare_slices(values, (50.0, 100.0), 32)
    share = intensity.resize_slices((labels == 1).astype(np.float32), 32)
    config = replace(with_clips(objects=1), classes=(1,))
    for clip in clips((values, labels), config, count=20):
        index = clip["slice_index"][clip["slice_valid"]].astype(int)
        # Sums of products in another order: 4 ulps of 1.
        np.testing.assert_allclose(clip["slices"][clip["slice_valid"]], expected[index], rtol=0, atol=2.5e-7)
        np.testing.assert_array_equal(clip["masks"][clip["slice_valid"], 0], share[index] >= 0.5)


def with_zoom(**changes):
    return with_clips(zoom_probability=1.0, objects=1, absent_probability=0.0, **changes)


def test_zoomed_clips_are_regions_of_the_slices_as_prediction_resizes_them(clips):
    values, labels = make_case(depth=14, size=200, second=False)  # 200 x 200 mm
    rows = np.arange(200, dtype=np.int16)
    values = np.broadcast_to(rows[:, None] // 2, labels.shape).astype(np.int16)  # HU 0 to 100 become 0 to 1
    sides = set()
    for clip in clips((values, labels), with_zoom(), count=30):
        # The first and last pixel show where the region is, and every pixel of it is resized as in prediction.
        top, bottom = clip["slices"][0, [0, -1], 0] * 200
        sides.add(round(float(bottom - top)))
        mask = clip["masks"][0, 0]
        assert mask.any() and clip["object_valid"][0] and clip["slices"][0, 16].std() < 1e-3
    assert min(sides) < 80 < max(sides) and len(sides) > 10


def test_a_zoomed_clip_equals_a_clip_of_the_cropped_volume(tmp_path):
    values, labels = make_case(depth=14, size=120)
    rng = np.random.default_rng(0)
    values = (values * 5 + rng.integers(0, 30, values.shape)).astype(np.int16)
    config = with_zoom()
    dataset = write_prepared(tmp_path / "d", {"x": (values, labels)}, LABELS)
    reader, case = CaseReader(dataset, config, 32), dataset.cases[0]
    for seed in range(10):
        stored = cut_clip(reader, case, config, np.random.default_rng(seed))
        inside = [np.flatnonzero(stored[name].any(axis)) for name, axis in (("vertical", 0), ("horizontal", 1))]
        top, left = (int(at[0]) for at in inside)
        rows, columns = (len(at) for at in inside)
        np.testing.assert_array_equal(stored["vertical"][:, top : top + rows], resize_matrix(rows, 32))
        clip = cut_and_render(reader, case, config, np.random.default_rng(seed))
        index = clip["slice_index"][clip["slice_valid"]].astype(int)
        part = np.s_[:, top : top + rows, left : left + columns]
        expected = intensity.prepare_slices(values[part], (50.0, 100.0), 32)[index]
        # Sums of products in another order: 4 ulps of 1.
        np.testing.assert_allclose(clip["slices"][clip["slice_valid"]], expected, rtol=0, atol=2.5e-7)
        shares = [intensity.resize_slices((labels[part] == v).astype(np.float32), 32)[index] for v in (1, 2)]
        masks = clip["masks"][clip["slice_valid"], 0].astype(bool)
        assert any(np.array_equal(masks, share >= 0.5) for share in shares)


def test_prompts_of_zoomed_clips_are_on_their_objects(clips):
    for clip in clips(make_case(size=120), with_zoom(), count=60):
        assert clip["object_valid"][0] and clip["multimask"].dtype == bool
        mask = clip["masks"][clip["prompt_step"][0], 0]
        x, y = clip["coords"][0, 0].round().astype(int)
        assert mask.any() and (not clip["multimask"][0] or mask[y, x])


def test_clips_without_zoom_do_not_depend_on_its_setting_and_some_are_whole_slices(clips):
    some = clips(make_case(size=120), with_clips(zoom_probability=0.5, objects=1), count=60)
    areas = [clip["masks"][0, 0].sum() for clip in some]
    whole = clips(make_case(size=120, second=False), with_clips(objects=1), count=1)[0]["masks"][0, 0].sum()
    assert 10 < sum(area <= whole for area in areas) < 50


def test_an_object_that_vanishes_on_whole_slices_is_prompted_in_zoomed_clips(clips):
    values, labels = make_case(size=200, second=False)
    labels[:] = 0
    labels[4:9, 100:103, 100:103] = 1  # 3 mm; a pixel of the whole slice has 6.25 mm, of a region of 64 mm 2 mm
    assert not any(clip["object_valid"].any() for clip in clips((values, labels), with_clips(objects=1), 20))
    assert any(clip["object_valid"].any() for clip in clips((values, labels), with_zoom(), 20))


def test_a_slice_where_the_object_is_smaller_than_a_pixel_is_not_prompted(clips):
    values, labels = make_case(second=False)
    labels[9] = 0
    labels[9, 9, 11] = 1  # one voxel, a quarter of a pixel at S = 16
    for clip in clips((values, labels), with_clips(objects=1), image_size=16):
        assert clip["object_valid"][0] and clip["slice_index"][0] != 9


def test_an_object_that_vanishes_at_the_image_size_is_invalid_and_has_no_prompt(clips):
    values, labels = make_case(second=False)
    labels[:] = 0
    labels[4:9, 9, 11] = 1
    for clip in clips((values, labels), with_clips(objects=1), image_size=16, count=20):
        assert not clip["object_valid"].any() and not clip["masks"].any()
        assert not clip["coords"].any() and (clip["point_labels"] == -1).all()


@pytest.mark.parametrize("window", ["10%,90%", "soft_tissue"])
def test_percentiles_of_other_modalities_than_ct_are_computed_once_per_volume(tmp_path, window):
    values = np.random.default_rng(0).integers(0, 1000, (14, 32, 32)).astype(np.int16)
    _, labels = make_case()
    dataset = write_prepared(tmp_path / "mr", {"case": (values, labels)}, LABELS, modality="MR")
    config = replace(STILL, preprocessing=PreprocessingConfig(window=window))
    reader, case = CaseReader(dataset, config, 32), dataset.cases[0]
    inside = values[values > values.min()]
    low, high = np.percentile(inside, (10, 90) if "%" in window else (0.5, 99.5))
    for i in range(3):
        clip = cut_and_render(reader, case, config, np.random.default_rng(i))
        valid = clip["slice_valid"]
        expected = np.clip((values[clip["slice_index"][valid].astype(int)] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(clip["slices"][valid], expected, atol=1e-5)  # float32 of a window in float64
    reads = []
    dataset.read = lambda *arguments: reads.append(arguments)  # type: ignore[method-assign]
    assert reader.window(case) == pytest.approx(((low + high) / 2, high - low)) and not reads


@pytest.mark.parametrize("depth", [14, 1])
def test_a_kept_case_without_an_object_is_clicked_anywhere_and_its_masks_are_empty(tmp_path, depth):
    values, labels = make_case()
    case = values[:depth], labels[:depth] * 0
    dataset = write_prepared(tmp_path / "d", {"x": case}, LABELS, keep_empty=True)
    reader, clicked = CaseReader(dataset, STILL, 32), set()
    for seed in range(30):
        clip = cut_and_render(reader, dataset.cases[0], STILL, np.random.default_rng(seed))
        assert clip["object_valid"].tolist() == [True, *[False] * (STILL.clips.objects - 1)]
        assert not clip["masks"].any() and clip["point_labels"][0].tolist() == [1, -1, -1, -1]
        assert clip["slice_valid"][clip["prompt_step"][0]]
        clicked.add((clip["slice_index"][clip["prompt_step"][0]], *clip["coords"][0, 0]))
    assert len({index for index, *_ in clicked}) > depth / 2 and len(clicked) > 20


def test_a_case_without_the_classes_is_refused(tmp_path):
    values, labels = make_case()
    dataset = write_prepared(tmp_path / "d", {"x": (values, labels * 0)}, LABELS)
    with pytest.raises(UserError, match="x contains none of the classes"):
        cut_and_render(CaseReader(dataset, STILL, 32), dataset.cases[0], STILL, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": (1, 7)}, r"data\.classes: .* has no label 7; choose from 1, 2"),
        ({"preprocessing": PreprocessingConfig(window="90%,10%")}, r"data\.preprocessing\.window is '90%,10%'"),
        ({"preprocessing": PreprocessingConfig(modality="x")}, r"data\.preprocessing\.modality is 'x', expected"),
        ({"preprocessing": PreprocessingConfig(window="40,-4")}, r"data\.preprocessing\.window is '40,-4'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_slice_is_read(tmp_path, changes, sentence):
    dataset = write_prepared(tmp_path / "d", {"x": make_case()}, LABELS)
    with pytest.raises(UserError, match=sentence):
        CaseReader(dataset, replace(STILL, **changes), 32)


def test_the_preprocessing_of_a_run_has_the_window_and_modality_of_the_dataset(tmp_path):
    values, labels = make_case()
    for modality, stored in (("CT", PreprocessingConfig("50,100", "CT")), ("T2", PERCENTILES_OF_MR)):
        dataset = write_prepared(tmp_path / modality, {"x": (values, labels)}, LABELS, modality=modality)
        assert CaseReader(dataset, STILL, 32).preprocessing == stored


def test_a_modality_that_is_not_the_one_of_the_prepared_dataset_is_refused_with_both(tmp_path):
    dataset = write_prepared(tmp_path / "d", {"x": make_case()}, LABELS, modality="MR")
    config = replace(STILL, preprocessing=PreprocessingConfig(modality="pet"))
    with pytest.raises(UserError, match=r"data\.preprocessing\.modality is pet, but .* was prepared as mr; leave"):
        CaseReader(dataset, config, 32)
    assert CaseReader(dataset, replace(STILL, preprocessing=PreprocessingConfig(modality="mr")), 32)
