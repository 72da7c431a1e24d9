"""Dice and IoU of masks, and their values for empty masks."""

import math

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import overlap_metrics


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros((3, 4, 5), bool)
    for voxel in voxels:
        array[voxel] = True
    return array


def test_dice_and_iou_equal_values_computed_by_hand():
    prediction = mask((0, 0, 0), (0, 0, 1), (1, 2, 3))
    reference = mask((0, 0, 1), (1, 2, 3), (2, 3, 4), (2, 3, 3), (2, 3, 2))
    assert overlap_metrics(prediction, reference) == {"dice": 2 * 2 / (3 + 5), "iou": 2 / 6}


def test_a_mask_overlaps_itself_completely_and_its_complement_not_at_all():
    own = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    assert overlap_metrics(own, own) == {"dice": 1.0, "iou": 1.0}
    assert overlap_metrics(own, ~own) == {"dice": 0.0, "iou": 0.0}


def test_overlap_does_not_depend_on_which_mask_is_the_reference():
    rng = np.random.default_rng(1)
    one, other = rng.random((2, 3, 4, 5)) < 0.4
    assert overlap_metrics(one, other) == overlap_metrics(other, one)


def test_one_empty_mask_scores_zero():
    assert overlap_metrics(mask(), mask((0, 0, 0))) == {"dice": 0.0, "iou": 0.0}
    assert overlap_metrics(mask((0, 0, 0)), mask()) == {"dice": 0.0, "iou": 0.0}


def test_two_empty_masks_have_no_score():
    assert all(math.isnan(value) for value in overlap_metrics(mask(), mask()).values())


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(UserError, match="one grid"):
        overlap_metrics(np.zeros((3, 4, 5), bool), np.zeros((1, 4, 5), bool))
