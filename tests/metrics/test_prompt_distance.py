"""Dice by distance from the prompted slices: bins and means computed by hand."""

import math

import numpy as np
import pytest

from sam2_3dmed_jax.metrics.prompt_distance import BINS_MM, dice_by_distance, mean_by_distance

NONE = [0, pytest.approx(math.nan, nan_ok=True)]


def masks(areas: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction and a reference, from the voxels per slice of both, and of either one alone."""
    prediction, reference = np.zeros((2, len(areas), 1, 12), bool)
    for index, (shared, predicted, actual) in enumerate(areas):
        prediction[index, 0, : shared + predicted] = True
        reference[index, 0, :shared] = True
        reference[index, 0, shared + predicted : shared + predicted + actual] = True
    return prediction, reference


def test_the_bins_are_the_documented_ones():
    assert list(BINS_MM) == [(0, 0), (0, 10), (10, 20), (20, 40), (40, 80), (80, math.inf)]


def test_all_slices_of_a_bin_are_scored_together_and_upper_edges_belong_to_it():
    # Slices of 5 mm, the prompt on slice 1: distances 5, 0, 5, 10, 15 and 20 mm; slice 4 holds nothing.
    pair = masks([(1, 2, 0), (4, 0, 0), (3, 1, 1), (2, 0, 4), (0, 0, 0), (0, 3, 0)])
    bins = dice_by_distance(*pair, [1], 5.0)
    # 5 and 10 mm: shared 1 + 3 + 2, sizes 4 + 8 + 8.
    assert bins == [[1, 1.0], [3, 2 * 6 / 20], [1, 0.0], NONE, NONE, NONE]


def test_the_nearest_of_several_prompted_slices_counts():
    pair = masks([(2, 0, 0), (2, 0, 0), (0, 1, 1), (2, 0, 0)])
    # Slices of 30 mm; prompts on slices 0 and 3: slices 1 and 2 are both 30 mm away.
    assert dice_by_distance(*pair, [0, 3], 30.0) == [[2, 1.0], NONE, NONE, [2, 2 * 2 / 6], NONE, NONE]
    assert dice_by_distance(*pair, [3], 30.0) == [[1, 1.0], NONE, NONE, [1, 0.0], [1, 1.0], [1, 1.0]]


def test_a_spacing_stored_as_float32_does_not_move_a_slice_to_the_next_bin():
    pair = masks([(1, 0, 0)] * 9)
    spacing = float(np.float32(1.25)) * (1 + 1e-7)
    assert [slices for slices, _ in dice_by_distance(*pair, [0], spacing)] == [1, 8, 0, 0, 0, 0]


def test_without_prompts_or_with_two_empty_masks_there_are_no_bins():
    assert dice_by_distance(*masks([(1, 0, 0)]), [], 5.0) == []
    assert dice_by_distance(*masks([(0, 0, 0)]), [0], 5.0) == []


def test_the_mean_is_over_cases_with_slices_in_the_bin_and_a_case_is_the_mean_of_its_seeds():
    empty = [[0, math.nan]] * 4
    rows = [
        {"case": "a", "by_distance": [[1, 0.9], [2, 0.4], *empty]},
        {"case": "a", "by_distance": [[1, 0.7], [3, 0.6], *empty]},
        {"case": "b", "by_distance": [[1, 0.6], [0, math.nan], *empty]},
        {"case": "c"},
    ]
    first, second, *others = mean_by_distance(rows)
    assert first == {"from_mm": 0, "to_mm": 0, "slices": 3, "cases": 2, "dice": pytest.approx((0.8 + 0.6) / 2)}
    assert second == {"from_mm": 0, "to_mm": 10, "slices": 5, "cases": 1, "dice": pytest.approx(0.5)}
    assert [(one["cases"], one["dice"]) for one in others] == [(0, None)] * 4 and others[-1]["to_mm"] is None
    assert mean_by_distance(rows[3:]) == []
