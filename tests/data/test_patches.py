"""Training patches: position, content, and padding outside of the volume."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig, PatchConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.patches import cut_patch, patch_augmentation, patch_shapes
from sam2_3dmed_jax.data.render import render_patches
from tests.helpers.prepared_files import write_prepared

STILL = DataConfig(classes=(1, 4), patches=PatchConfig(foreground_probability=1.0), augmentation=NO_AUGMENTATION)

ULP = 1.2e-7  # of 1; compilers divide by other instructions than NumPy


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    values = np.random.default_rng(0).integers(-100, 200, (12, 20, 24)).astype(np.int16)
    labels = np.zeros(values.shape, np.uint8)
    labels[9, 15:17, 2] = 4
    labels[2, 3, 20:22] = 2
    return write_prepared(tmp_path_factory.mktemp("data"), {"a": (values, labels)}, {1: "x", 2: "y", 4: "z"})


def patches(dataset, config, size, count=20):
    """Cut and render patches."""
    reader = CaseReader(dataset, config, 0)
    cut = [cut_patch(reader, dataset.cases[0], config, size, np.random.default_rng(seed)) for seed in range(count)]
    shapes = patch_shapes(size, config)
    assert all({name: (x.shape, x.dtype.type) for name, x in patch.items()} == shapes for patch in cut)
    batch = {name: np.stack([patch[name] for patch in cut]) for name in shapes}
    rendered = jax.device_get(jax.jit(lambda x: render_patches(x, patch_augmentation(config), size[1:]))(batch))
    return [{name: value[i] for name, value in rendered.items()} for i in range(count)]


def test_a_foreground_patch_contains_a_class_under_its_index(dataset):
    for patch in patches(dataset, STILL, (4, 8, 8)):
        assert set(np.unique(patch["labels"])) == {0, 2}  # label 4 is the second class, and label 2 is not a class
        assert patch["image"].shape == patch["labels"].shape == (4, 8, 8)


def test_patches_without_foreground_are_inside_the_volume(dataset):
    anywhere = patches(dataset, replace(STILL, patches=PatchConfig(foreground_probability=0.0)), (4, 8, 8))
    values = CaseReader(dataset, STILL, 0).values(dataset.cases[0], range(12))
    boxes = np.lib.stride_tricks.sliding_window_view(values, (4, 8, 8))
    for patch in anywhere:
        assert (np.abs(boxes - patch["image"]) < ULP).all((3, 4, 5)).any()
    assert 0 < sum(bool(patch["labels"].any()) for patch in anywhere) < len(anywhere)


def test_a_patch_of_a_case_without_the_classes_is_anywhere(tmp_path):
    values = np.random.default_rng(0).integers(-100, 200, (12, 20, 24)).astype(np.int16)
    negative = write_prepared(
        tmp_path / "d", {"a": (values, np.zeros(values.shape, np.uint8))}, {1: "x", 2: "y", 4: "z"}
    )
    found = patches(negative, STILL, (4, 8, 8))
    assert not any(patch["labels"].any() for patch in found)
    assert len({patch["image"].tobytes() for patch in found}) > len(found) / 2


def test_a_volume_smaller_than_the_patch_is_centred_and_padded_with_the_lowest_value(dataset):
    (patch,) = patches(dataset, STILL, (16, 32, 32), 1)
    values = CaseReader(dataset, STILL, 0).values(dataset.cases[0], range(12))
    np.testing.assert_allclose(patch["image"][2:14, 6:26, 4:28], values, rtol=0, atol=ULP)
    assert patch["image"].sum() == pytest.approx(values.sum()) and patch["labels"].sum() == 4


def test_augmented_patches_keep_their_shape_and_range(dataset):
    for patch in patches(
        dataset, DataConfig(classes=(4,), patches=PatchConfig(foreground_probability=1.0)), (4, 8, 12), 5
    ):
        assert patch["image"].shape == (4, 8, 12) and 0 <= patch["image"].min() <= patch["image"].max() <= 1
