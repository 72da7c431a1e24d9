"""Label maps on voxels against interpolation on the host."""

import numpy as np
import pytest

from sam2_3dmed_jax.inference import label_maps
from sam2_3dmed_jax.inference.label_maps import label_map, paint_object
from sam2_3dmed_jax.volume.intensity import restore_logits


def logits_of(objects: int, depth: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 5, (objects, depth, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 30), (9, 50), (16, 16)])
@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_each_voxel_has_the_object_with_the_largest_interpolated_logit(shape, threshold, monkeypatch):
    monkeypatch.setattr(label_maps, "BLOCK_VOXELS", 3 * shape[0] * shape[1])  # the last block is not full
    logits = logits_of(2)
    restored = np.stack([restore_logits(own, shape) for own in logits])
    expected = np.where(restored.max(0) > threshold, np.array([5, 3])[restored.argmax(0)], 0)
    labels = label_map(logits, [5, 3], shape, threshold)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected)


def test_of_equal_logits_the_first_object_counts():
    logits = np.repeat(np.abs(logits_of(1)), 2, axis=0)
    assert set(np.unique(label_map(logits, [4, 2], (20, 20)))) == {4}


def test_a_map_without_objects_is_empty():
    assert not label_map(np.zeros((0, 3, 16, 16), np.float32), [], (20, 30)).any()


def test_any_number_of_objects_and_slices_shares_a_compilation():
    label_map(logits_of(1, 16), [1], (21, 23))
    compilations = paint_object._cache_size()
    label_map(logits_of(3, 11), [1, 2, 3], (21, 23))
    assert paint_object._cache_size() == compilations
