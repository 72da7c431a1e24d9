"""Windows, resizing against `jax.image.resize`, and the way back to voxels."""

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.simulation import to_pixels
from sam2_3dmed_jax.runtime.imagenet import normalise
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import (
    PERCENTILES,
    WINDOWS,
    PreparedSlices,
    apply_window,
    parse_window,
    prepare_slices,
    preprocessing_of,
    resize_matrix,
    resize_slices,
    restore_logits,
    window_of,
)


@pytest.mark.parametrize(
    ("n_in", "n_out"), [(1, 1), (1, 7), (7, 1), (5, 5), (5, 13), (13, 5), (512, 1024), (512, 300), (337, 128)]
)
def test_the_resize_matrix_equals_that_of_jax(n_in, n_out):
    with jax.default_matmul_precision("highest"):
        expected = jax.image.resize(np.eye(n_in, dtype=np.float32), (n_out, n_in), "linear", antialias=True)
    matrix = resize_matrix(n_in, n_out)
    assert matrix.dtype == np.float32
    # jax computes the sample positions in float32: an error of a few eps times the position, here up to 512
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-6 * max(n_in, 10))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "size"), [((2, 20, 30), 64), ((2, 70, 50), 32), ((3, 20, 90), 48)])
def test_resized_slices_equal_those_of_jax(shape, size):
    array = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        expected = jax.image.resize(array, (shape[0], size, size), "linear", antialias=True)
    # values of order one, float32 sample positions in jax
    np.testing.assert_allclose(resize_slices(array, size), expected, rtol=0, atol=2e-5)


def test_equal_size_leaves_slices_as_they_are():
    array = np.random.default_rng(0).normal(size=(2, 9, 9)).astype(np.float32)
    np.testing.assert_array_equal(resize_slices(array, 9), array)


def test_a_ramp_keeps_voxel_and_pixel_coordinates_together():
    height, width, size = 20, 40, 64
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    resized = resize_slices(np.stack([columns, rows]), size)
    x, y = to_pixels(np.array([13.0, 7.0]), (height, width), size)
    back_x = (np.arange(size) + 0.5) * width / size - 0.5
    inner = (back_x > 0) & (back_x < width - 1)  # at the rim the outermost voxel is repeated
    np.testing.assert_allclose(resized[0, 30, inner], back_x[inner], rtol=0, atol=1e-4)
    assert np.interp(x, np.arange(size), resized[0, 30]) == pytest.approx(13, abs=1e-4)
    assert np.interp(y, np.arange(size), resized[1, :, 30]) == pytest.approx(7, abs=1e-4)


def test_a_window_maps_its_ends_to_0_and_1_and_clips_beyond():
    hu = np.array([-1024, -160, 40, 240, 3000], np.int16)
    unit = apply_window(hu, *WINDOWS["soft_tissue"])
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, np.float32([0, 0, 0.5, 1, 1]))
    assert hu[0] == -1024


@pytest.mark.parametrize("text", ["40,400", " 40 , 400 ", "40.0,4e2"])
def test_a_window_may_be_two_numbers(text):
    assert parse_window(text) == (40, 400)


def test_every_named_window_is_found_and_has_a_positive_width():
    for name, (level, width) in WINDOWS.items():
        assert parse_window(name) == (level, width)
        assert width > 0


@pytest.mark.parametrize("text", ["", "soft", "40", "40,0", "40,-5", "40,nan", "inf,400", "1,2,3", "a,b"])
def test_a_wrong_window_names_the_field_and_the_choices(text):
    with pytest.raises(UserError, match=r"data\.preprocessing\.window is .*soft_tissue") as error:
        parse_window(text)
    assert "\n" not in str(error.value)


def volume_of(array: np.ndarray, modality: str = "CT") -> Volume:
    depth, height, width = array.shape
    return Volume(array.astype(np.float32), Grid((width, height, depth), np.diag([-1.0, -1.0, 1.0, 1.0])), modality)


def test_percentiles_are_taken_over_what_is_above_the_background():
    array = np.zeros((2, 10, 101))
    array[:, :, 1:] = np.arange(1, 101)  # 1 to 100, each equally often, next to a background of 0
    level, width = window_of(volume_of(array), "10%,90%")
    assert (level - width / 2, level + width / 2) == pytest.approx((10.9, 90.1), abs=1e-4)


def test_other_modalities_than_ct_use_percentiles_instead_of_a_window_in_hu():
    array = np.random.default_rng(0).normal(3000, 500, (2, 20, 20))
    assert window_of(volume_of(array), "lung") == WINDOWS["lung"]
    assert window_of(volume_of(array, "MR"), "lung") == window_of(volume_of(array, "MR"), PERCENTILES)
    with pytest.raises(UserError, match=r"data\.preprocessing\.window"):
        window_of(volume_of(array, "MR"), "lungs")


def test_percentiles_of_a_ct_do_not_follow_metal_that_prepared_ct_is_clipped_to():
    array = np.random.default_rng(0).normal(0, 200, (2, 20, 20))
    array[:, :2] = 30000  # an implant, 10 % of the voxels
    assert window_of(volume_of(array), PERCENTILES) == window_of(volume_of(np.minimum(array, 3071)), PERCENTILES)


@pytest.mark.parametrize(("trained", "other"), [("CT", "MR"), ("MR", "CT"), ("PT", "CT")])
def test_slices_are_not_prepared_for_a_model_of_another_modality(trained, other):
    volume = volume_of(np.ones((1, 4, 4)), other)
    with pytest.raises(UserError, match=f"the volume is {other}, but the checkpoint was trained on {trained}"):
        PreparedSlices(volume, PreprocessingConfig("lung", trained), 32)
    PreparedSlices(volume, PreprocessingConfig("lung"), 32)  # official weights and version 0.1 have no modality


@pytest.mark.parametrize(
    ("window", "modalities", "stored"),
    [
        ("lung", ["CT"], ("lung", "CT")),
        ("lung", ["MR"], (PERCENTILES, "MR")),
        ("40,400", ["PT"], (PERCENTILES, "PT")),
        ("1%,99%", ["MR"], ("1%,99%", "MR")),
        ("1%,99%", ["CT"], ("1%,99%", "CT")),
        ("lung", ["CT", "MR"], ("lung", "")),
    ],
)
def test_a_checkpoint_stores_the_window_and_modality_that_it_was_trained_with(window, modalities, stored):
    assert preprocessing_of(PreprocessingConfig(window), modalities) == PreprocessingConfig(*stored)


def test_a_constant_volume_has_a_window():
    assert window_of(volume_of(np.full((1, 3, 3), 7.0), "MR"), "lung") == (7.0, 1e-6)


@pytest.mark.parametrize("text", ["1%", "1%,99", "99%,1%", "-1%,50%", "5%,5%", "a%,b%", "1%,101%", "nan%,5%"])
def test_wrong_percentiles_are_refused_by_field(text):
    with pytest.raises(UserError, match=r"data\.preprocessing\.window is .*0\.5%,99\.5%"):
        window_of(volume_of(np.ones((1, 2, 2))), text)


def test_prepared_slices_of_a_volume_are_made_block_by_block():
    volume = volume_of(np.random.default_rng(0).normal(0, 300, (5, 20, 30)))
    slices = PreparedSlices(volume, PreprocessingConfig("lung"), 32)
    assert slices.shape == (5, 32, 32, 3) and len(slices) == 5
    whole = normalise(prepare_slices(volume.array, WINDOWS["lung"], 32))
    np.testing.assert_array_equal(np.concatenate([slices[0:2], slices[2:5]]), whole)


def test_prepared_slices_are_square_and_between_0_and_1():
    hu = np.random.default_rng(0).normal(0, 600, (3, 40, 25)).astype(np.float32)
    for size in (16, 64):
        unit = prepare_slices(hu, WINDOWS["lung"], size)
        assert unit.shape == (3, size, size)
        assert unit.dtype == np.float32
        assert unit.min() >= 0
        assert unit.max() <= 1


def test_the_window_is_applied_before_resizing():
    hu = np.array([[[-1000.0, 3000.0]]], np.float32)
    unit = prepare_slices(np.repeat(hu, 2, axis=1), (40, 400), 4)
    np.testing.assert_allclose(unit[0, 0], [0, 0.25, 0.75, 1], rtol=0, atol=1e-6)


def test_normalised_slices_have_three_channels_of_imagenet_statistics():
    channels = normalise(np.array([[[0.485]]], np.float32))
    assert channels.shape == (1, 1, 1, 3)
    assert channels.dtype == np.float32
    np.testing.assert_allclose(
        channels[0, 0, 0], [0, (0.485 - 0.456) / 0.224, (0.485 - 0.406) / 0.225], rtol=0, atol=1e-6
    )


def test_logits_return_to_voxels_as_jax_resizes_them():
    logits = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32) * 10
    for shape in ((40, 30), (9, 50)):
        restored = restore_logits(logits, shape)
        assert restored.dtype == np.float32
        with jax.default_matmul_precision("highest"):
            expected = jax.image.resize(logits, (2, *shape), "linear", antialias=True)
        # logits of up to 40, and float32 sample positions in jax
        np.testing.assert_allclose(restored, expected, rtol=0, atol=5e-4)


def test_bfloat16_logits_are_accepted():
    logits = jax.numpy.ones((1, 4, 4), "bfloat16")
    np.testing.assert_allclose(restore_logits(np.asarray(logits), (8, 8)), 1, rtol=0, atol=1e-6)


def test_a_mask_that_is_enlarged_and_restored_stays_in_place():
    mask = np.zeros((1, 50, 80), np.float32)
    mask[0, 10:30, 20:60] = 1
    logits = resize_slices(mask * 20 - 10, 64)
    restored = restore_logits(logits, (50, 80)) > 0
    # 80 columns through 64 pixels: an edge may move by one voxel, not more
    assert np.count_nonzero(restored != (mask > 0)) <= 2 * (20 + 40)
    assert restored[0, 11:29, 21:59].all()
    assert not restored[0, :9].any()
    assert not restored[0, :, :19].any()
