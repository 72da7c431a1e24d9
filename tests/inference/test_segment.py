"""Conversion of prompts to canonical slices, and of logits to labels on the voxels of the volume."""

import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.segment import segment_volume
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.prompts.voxel_prompts import (
    VoxelPrompt,
    box_prompts,
    mask_prompts,
    merge_prompts,
    point_prompts,
)
from sam2_3dmed_jax.volume.geometry import Grid, Volume, from_canonical, voxel_to_canonical
from sam2_3dmed_jax.volume.intensity import PreparedSlices, restore_logits

# Stored as (superior to inferior, right to left, anterior to posterior): all axes are permuted, one flipped.
AFFINE = np.array([[0, -0.8, 0, 5], [0, 0, -0.7, 9], [-3.0, 0, 0, 40], [0, 0, 0, 1.0]])
GRID = Grid((6, 40, 48), AFFINE, "scan.nii.gz")


@pytest.fixture(scope="module")
def volume() -> Volume:
    depth, height, width = GRID.canonical_shape
    rng = np.random.default_rng(0)
    return Volume(rng.normal(40, 100, (depth, height, width)).astype(np.float32), GRID)


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(new_model("nano", 64, with_3dmed=True))


def test_a_point_is_on_the_same_voxel_in_the_file_and_on_its_slice(volume: Volume):
    stored = from_canonical(volume.array, GRID)
    (prompt,) = point_prompts(GRID, [((1, 30, 7), 1, 4)])
    ((w, h),) = prompt.points
    assert volume.array[prompt.slice, int(h), int(w)] == stored[1, 30, 7]
    assert (prompt.object_id, prompt.labels) == (4, (1,))


def test_points_of_one_object_on_one_slice_become_one_prompt():
    prompts = merge_prompts(point_prompts(GRID, [((1, 30, 7), 1, 1), ((1, 31, 8), 0, 1), ((1, 5, 5), 1, 2)]))
    assert [(p.object_id, p.labels) for p in prompts] == [(1, (1, 0)), (2, (1,))]


def test_a_point_on_the_outermost_border_belongs_to_the_outermost_slice():
    (low,), (high,) = (point_prompts(GRID, [((x, 3, 3), 1, 1)]) for x in (5.5, -0.5))
    assert (low.slice, high.slice) == (0, 5)


def test_a_box_becomes_one_box_on_each_slice_that_it_covers():
    prompts = box_prompts(GRID, [((1, 10, 20), (3, 14, 26), 2)])
    corners = sorted([voxel_to_canonical(GRID, (1, 10, 20)), voxel_to_canonical(GRID, (3, 14, 26))])
    (d0, h0, w0), (d1, h1, w1) = np.sort(corners, axis=0)
    assert [p.slice for p in prompts] == list(range(int(d0), int(d1) + 1)) and len(prompts) == 3
    assert all(p.box == (w0, h0, w1, h1) and p.object_id == 2 for p in prompts)


def test_the_corners_of_a_box_may_come_in_any_order():
    one = box_prompts(GRID, [((1, 10, 20), (3, 14, 26), 1)])
    other = box_prompts(GRID, [((3, 10, 26), (1, 14, 20), 1)])
    assert [(p.slice, p.box) for p in one] == [(p.slice, p.box) for p in other]


def test_a_box_and_points_on_one_slice_become_one_prompt():
    (prompt,) = merge_prompts(
        [*box_prompts(GRID, [((2, 1, 1), (2, 9, 9), 1)]), *point_prompts(GRID, [((2, 5, 5), 1, 1)])]
    )
    assert prompt.box is not None and len(prompt.points) == 1


@pytest.mark.parametrize("voxel", [(6, 3, 3), (-1, 3, 3), (0, 40, 3), (0, 3, float("nan"))])
def test_prompts_outside_the_volume_are_rejected(voxel: tuple[float, float, float]):
    with pytest.raises(UserError, match=r"scan\.nii\.gz"):
        point_prompts(GRID, [(voxel, 1, 1)])
    with pytest.raises(UserError, match=r"scan\.nii\.gz"):
        box_prompts(GRID, [((1, 1, 1), voxel, 1)])


def test_each_value_of_a_drawn_mask_is_an_object_prompted_where_it_is_drawn():
    labels = np.zeros(GRID.canonical_shape, np.int32)
    labels[2, 3:9, 3:9], labels[4, 3:9, 3:9], labels[4, 20:30, 20:30] = 1, 1, 7
    prompts = {(p.object_id, p.slice): p.mask for p in mask_prompts(labels)}
    assert set(prompts) == {(1, 2), (1, 4), (7, 4)}
    assert all(np.array_equal(mask, labels[d] == value) for (value, d), mask in prompts.items())


def test_an_empty_mask_is_rejected():
    with pytest.raises(UserError, match=r"drawn\.nii\.gz is empty"):
        mask_prompts(np.zeros(GRID.canonical_shape, np.int32), "drawn.nii.gz")


def test_labels_are_the_objects_with_the_largest_interpolated_logit_above_zero(
    volume: Volume, predictor: VolumePredictor
):
    depth, height, width = volume.array.shape
    prompts = [VoxelPrompt(3, 2, ((20.0, 24.0),), (1,)), VoxelPrompt(5, 4, ((10.0, 12.0),), (1,))]
    segmentation = segment_volume(predictor, volume, prompts)

    size = predictor.model.config.image_size
    slices = PreparedSlices(volume, predictor.model.info.preprocessing, size)[:]
    pixels = [
        Prompt(p.object_id, p.slice, [((x + 0.5) * size / width - 0.5, (y + 0.5) * size / height - 0.5)], [1])
        for p in prompts
        for x, y in p.points
    ]
    logits = predictor.predict(slices, pixels).mask_logits
    on_voxels = np.stack([restore_logits(own, (height, width)) for own in logits])
    best = on_voxels.argmax(0)
    expected = np.where(on_voxels.max(0) > 0, np.array([3, 5])[best], 0)
    assert segmentation.labels.dtype == np.uint16 and segmentation.labels.shape == volume.array.shape
    assert {3, 5} & set(np.unique(segmentation.labels).tolist())  # at least one object is in the label map
    assert np.array_equal(segmentation.labels, expected)


def test_a_mask_prompt_is_segmented_on_its_slice(volume: Volume, predictor: VolumePredictor):
    labels = np.zeros(volume.array.shape, np.int32)
    labels[1, 10:30, 8:28], labels[3, 20:40, 8:28] = 1, 2
    segmented = segment_volume(predictor, volume, mask_prompts(labels)).labels
    for value, d in ((1, 1), (2, 3)):
        drawn, result = labels[d] == value, segmented[d] == value
        # The mask is resampled to S / 4 = 16 cells, so its border moves by up to a cell, which is 3 voxels.
        assert 2 * (drawn & result).sum() / (drawn.sum() + result.sum()) > 0.7
