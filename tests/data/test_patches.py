"""Patches: where they lie, what is in them, and what is beyond the volume."""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.patches import cut_patch, patch_shapes
from sam2_3dmed_jax.data.view import ModelView
from tests.helpers.prepared_files import NO_AUGMENTATION, write_prepared

STILL = DataConfig(classes=(1, 4), foreground=1.0, **NO_AUGMENTATION)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    values = np.random.default_rng(0).integers(-100, 200, (12, 20, 24)).astype(np.int16)
    labels = np.zeros(values.shape, np.uint8)
    labels[9, 15:17, 2] = 4
    labels[2, 3, 20:22] = 2
    return write_prepared(tmp_path_factory.mktemp("data"), {"a": (values, labels)}, {1: "x", 2: "y", 4: "z"})


def patches(dataset, config, size, count=20):
    view = ModelView(dataset, config, 0)
    return [cut_patch(view, dataset.cases[0], config, size, np.random.default_rng(seed)) for seed in range(count)]


def test_a_patch_about_the_foreground_holds_it_under_the_place_of_its_class(dataset):
    for patch in patches(dataset, STILL, (4, 8, 8)):
        assert set(np.unique(patch["labels"])) == {0, 2}  # label 4 is the second class, and 2 none
        shapes = {name: (x.shape, x.dtype.type) for name, x in patch.items()}
        assert shapes == patch_shapes((4, 8, 8))


def test_patches_anywhere_lie_inside_the_volume(dataset):
    found = patches(dataset, replace(STILL, foreground=0.0), (4, 8, 8))
    values, _ = ModelView(dataset, STILL, 0).read(dataset.cases[0], range(12))
    boxes = np.lib.stride_tricks.sliding_window_view(values, (4, 8, 8))
    for patch in found:
        assert (boxes == patch["image"]).all((3, 4, 5)).any()
    assert 0 < sum(bool(patch["labels"].any()) for patch in found) < len(found)


def test_a_volume_smaller_than_the_patch_lies_in_its_middle_between_the_windows_lowest_values(dataset):
    (patch,) = patches(dataset, STILL, (16, 32, 32), 1)
    values, _ = ModelView(dataset, STILL, 0).read(dataset.cases[0], range(12))
    np.testing.assert_array_equal(patch["image"][2:14, 6:26, 4:28], values)
    assert patch["image"].sum() == pytest.approx(values.sum()) and patch["labels"].sum() == 4


def test_augmented_patches_keep_their_shape_and_range(dataset):
    for patch in patches(dataset, DataConfig(classes=(4,), foreground=1.0), (4, 8, 12), 5):
        assert patch["image"].shape == (4, 8, 12) and 0 <= patch["image"].min() <= patch["image"].max() <= 1
