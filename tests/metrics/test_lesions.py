"""Lesions: which are found, which components are false positives, and results by diameter."""

import math

import numpy as np
import pytest

from sam2_3dmed_jax.metrics.lesions import count_lesions, diameter_mm, summarise_lesions


def test_a_lesion_is_found_if_touched_and_a_component_that_touches_none_is_false():
    reference, prediction = np.zeros((2, 10, 20, 20), bool)
    reference[1:3, 2:4, 2:4] = True  # 8 voxels, 2 of them covered
    reference[3, 4, 4] = True  # joined by a corner
    reference[6:8, 10:14, 10:14] = True  # 32 voxels, missed
    prediction[1:3, 2, 2] = True
    prediction[2, 2, 1] = True  # the same component
    prediction[9, 0, 0] = prediction[0, 18, 18] = True  # two components that touch no lesion
    counts, lesions = count_lesions(prediction, reference, voxel_ml=0.5)
    assert (counts.lesions_reference, counts.lesions_found, counts.lesions_false_positive) == (2, 1, 2)
    assert [lesion["found"] for lesion in lesions] == [True, False]
    assert lesions[0]["covered"] == 2 / 9 and lesions[1]["volume_ml"] == 16
    assert counts.largest_lesion_mm == lesions[1]["diameter_mm"] == diameter_mm(16)
    assert diameter_mm(4 / 3 * math.pi * 1.5**3) == pytest.approx(30)


def test_results_by_diameter_count_each_lesion_and_case_once():
    def lesion(diameter: float, found: bool) -> dict:
        return {"diameter_mm": diameter, "found": found, "covered": 0.5 * found}

    def case(dice: float, largest: float, false: int) -> dict:
        counts = {"lesions_reference": 2, "lesions_found": 1, "lesions_false_positive": false}
        return {"dice": dice, "largest_lesion_mm": largest, **counts}

    lesions = [lesion(5, False), lesion(10, True), lesion(12, False), lesion(40, True)]
    summary = summarise_lesions([case(0.4, 10, 3), case(0.8, 40, 0)], lesions)
    assert (summary["lesions"], summary["found"], summary["recall"]) == (4, 2, 0.5)
    assert summary["false_positives_per_case"] == 1.5
    small, middle, large, larger = summary["by_diameter"]
    assert (small["lesions"], small["recall"], small["cases"], small["dice"]) == (1, 0, 0, None)
    assert (middle["lesions"], middle["recall"], middle["covered"], middle["dice"]) == (2, 0.5, 0.25, 0.4)
    assert large["lesions"] == 0 and large["recall"] is None
    assert (larger["from_mm"], larger["below_mm"], larger["recall"], larger["dice"]) == (30, None, 1, 0.8)
