"""The columns of a row, by hand; slanted grids; and how often a hundred cases compile."""

import math

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.scores import SURFACE, Measure, score
from sam2_3dmed_jax.metrics import nearest_surface
from sam2_3dmed_jax.metrics.lesions import count_lesions, diameter_mm, summarise_lesions
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_classes import LabelClass
from sam2_3dmed_jax.volume.nearest_grid import is_orthogonal, onto_grid, orthogonal_grid


def grid_of(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (5.0, 2.0, 1.0)) -> Grid:
    depth, height, width = shape
    dz, dy, dx = spacing
    return Grid((width, height, depth), np.diag([-dx, -dy, dz, 1.0]), "scan.nii.gz")


def slanted(shape: tuple[int, int, int], shear: float) -> Grid:
    """Slices of which each lies `shear` voxels further along the rows than the one below, as a gantry tilts them."""
    grid = grid_of(shape)
    affine = grid.affine.copy()
    affine[1, 2] = -2.0 * shear
    return Grid(grid.shape, affine, "tilted.nii.gz")


def test_slices_with_a_prompt_and_voxels_beyond_the_extent_are_counted_apart():
    reference, prediction = np.zeros((2, 6, 4, 4), bool)
    reference[2:4, 1:3, 1:3] = True
    prediction[2, 1:3, 1:3] = True
    prediction[5, :, :] = True
    found = score(prediction, reference, grid_of((6, 4, 4)), [2])
    assert found["dice"] == 2 * 4 / (8 + 20) and found["iou"] == 4 / 24
    assert found["dice_without_prompted_slices"] == 0 == found["iou_without_prompted_slices"]
    assert found["volume_ml_prediction"] == pytest.approx(20 * 0.01)
    assert found["volume_error_ml"] == pytest.approx(12 * 0.01)
    assert found["volume_error_percent"] == pytest.approx(150)
    assert found["fp_ml_outside_extent"] == pytest.approx(16 * 0.01)


def test_scores_beside_the_prompted_slices_are_those_of_the_other_slices():
    reference, prediction = np.zeros((2, 6, 4, 4), bool)
    reference[2:4, 1:3, 1:3] = True
    prediction[2:4, 1:3, 1:4] = True
    found = score(prediction, reference, grid_of((6, 4, 4)), [2])
    assert found["dice_without_prompted_slices"] == 2 * 4 / (4 + 6)
    assert found["iou_without_prompted_slices"] == 4 / 6


@pytest.mark.parametrize("predicted", [False, True])
def test_a_reference_on_prompted_slices_alone_has_no_score_beside_them_whatever_is_predicted(predicted: bool):
    reference, prediction = np.zeros((2, 6, 4, 4), bool)
    reference[2, 1:3, 1:3] = True
    prediction[2:5] = predicted
    found = score(prediction, reference, grid_of((6, 4, 4)), [2])
    assert math.isnan(found["dice_without_prompted_slices"]) and found["dice"] >= 0


def test_overlap_alone_leaves_surfaces_out_and_works_on_a_slanted_grid():
    mask = np.zeros((4, 6, 6), bool)
    mask[1:3, 2:4, 2:4] = True
    found = score(mask, mask, slanted(mask.shape, 0.3), measure=Measure(surfaces=False))
    assert found["dice"] == 1 and all(math.isnan(found[metric]) for metric in SURFACE)


def test_the_volume_of_a_slanted_mask_is_that_of_the_determinant():
    mask = np.zeros((4, 6, 6), bool)
    mask[1:3, 2:4, 2:4] = True
    found = score(mask, mask, slanted(mask.shape, 0.3), measure=Measure(surfaces=False))
    assert found["volume_ml_prediction"] == pytest.approx(8 * 5 * 2 * 1 / 1000)


def test_surfaces_on_a_slanted_grid_are_refused_with_the_file_and_the_mend():
    mask = np.ones((4, 6, 6), bool)
    with pytest.raises(UserError, match=r"tilted\.nii\.gz has axes that are not orthogonal.*--resample.*--metrics"):
        score(mask, mask, slanted(mask.shape, 0.3))
    score(mask, mask, slanted(mask.shape, 1e-4))  # a header's rounding


def test_surfaces_of_a_slanted_block_are_measured_where_the_voxels_lie():
    # 30 slices that slide by half a row each: a leaning column, and the same five rows further on.
    reference, prediction = np.zeros((2, 30, 40, 12), bool)
    reference[:, 5:15, 3:9] = True
    prediction[:, 10:20, 3:9] = True
    found = score(prediction, reference, slanted(reference.shape, 0.5), measure=Measure(resample=True))
    # Rows are 2 mm apart, and the column leans by 1 mm in 5: its faces are 10 mm apart along a row, so less across.
    across = 10 * math.cos(math.atan(1 / 5))
    assert found["hd_mm"] == pytest.approx(10, abs=1)  # at the ends the rows themselves count; half a voxel either way
    assert found["hd95_mm"] == pytest.approx(across, abs=1)


def test_an_orthogonal_grid_around_a_slanted_one_holds_all_its_voxels_and_keeps_its_planes():
    grid = slanted((7, 9, 8), 0.6)
    square = orthogonal_grid(grid)
    assert not is_orthogonal(grid) and is_orthogonal(square)
    assert square.spacing == pytest.approx((5.0, 2.0, 1.0))
    moved = onto_grid(np.ones((7, 9, 8), np.uint8), grid, square)
    assert moved.shape[0] == 7 and moved.shape[1] == 9 + round(6 * 0.6)
    assert moved.sum() == 7 * 9 * 8
    back = onto_grid(moved, square, grid)
    assert back.all()


def test_labels_moved_by_whole_voxels_are_the_same_labels_there():
    labels = np.random.default_rng(0).integers(0, 5, (4, 6, 5)).astype(np.int32)
    source = grid_of((4, 6, 5))
    affine = source.affine.copy()
    affine[:3, 3] += [-2.0, 0.0, 5.0]  # two columns and one slice further
    moved = onto_grid(labels, source, Grid(source.shape, affine))
    affine[:3, 3] += 0.4  # less than half a voxel is none
    assert np.array_equal(moved, onto_grid(labels, source, Grid(source.shape, affine)))
    assert np.array_equal(moved[:3, :, :3], labels[1:, :, 2:]) and not moved[3].any() and not moved[:, :, 3:].any()


def test_an_unknown_definition_or_policy_is_refused_with_the_choices():
    with pytest.raises(UserError, match="surface-distance, monai, medpy"):
        Measure("plastimatch")
    with pytest.raises(UserError, match="diagonal, nan"):
        Measure(empty="zero")


def test_a_hundred_cases_of_differing_size_compile_at_most_eight_times():
    rng = np.random.default_rng(0)
    nearest_surface._search.clear_cache()
    for shape in rng.integers((6, 20, 20), (30, 90, 90), (100, 3)).tolist():
        reference, prediction = np.zeros((2, *shape), bool)
        low, high = (2, 4, 4), [n - 2 for n in shape]
        reference[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        prediction[tuple(slice(a - 1, b) for a, b in zip(low, high, strict=True))] = True
        found = score(prediction, reference, grid_of((shape[0], shape[1], shape[2])), [3], 2.0)
        assert 0 < found["dice"] < 1
    assert 1 <= nearest_surface._search._cache_size() <= 8


def test_lesions_are_components_found_by_a_touch_and_false_without_one():
    reference, prediction = np.zeros((2, 10, 20, 20), bool)
    reference[1:3, 2:4, 2:4] = True  # 8 voxels, 2 of them covered
    reference[3, 4, 4] = True  # joined to it by a corner
    reference[6:8, 10:14, 10:14] = True  # 32 voxels, missed
    prediction[1:3, 2, 2] = True
    prediction[2, 2, 1] = True  # the same component
    prediction[9, 0, 0] = prediction[0, 18, 18] = True  # two that are none
    counts, lesions = count_lesions(prediction, reference, voxel_ml=0.5)
    assert counts["lesions_reference"] == 2 and counts["lesions_found"] == 1 and counts["lesions_false_positive"] == 2
    assert [lesion["found"] for lesion in lesions] == [True, False]
    assert lesions[0]["covered"] == 2 / 9 and lesions[1]["volume_ml"] == 16
    assert counts["largest_lesion_mm"] == lesions[1]["diameter_mm"] == diameter_mm(16)
    assert diameter_mm(4 / 3 * math.pi * 1.5**3) == pytest.approx(30)


def test_results_by_diameter_count_each_lesion_and_case_once():
    def lesion(diameter: float, found: bool) -> dict:
        return {"diameter_mm": diameter, "found": found, "covered": 0.5 * found}

    def case(dice: float, largest: float, false: int) -> dict:
        counts = {"lesions_reference": 2, "lesions_found": 1, "lesions_false_positive": false}
        return {"dice": dice, "largest_lesion_mm": largest, **counts}

    lesions = [lesion(5, False), lesion(10, True), lesion(12, False), lesion(40, True)]
    found = summarise_lesions([case(0.4, 10, 3), case(0.8, 40, 0)], lesions)
    assert (found["lesions"], found["found"], found["recall"]) == (4, 2, 0.5)
    assert found["false_positives_per_case"] == 1.5
    small, middle, large, larger = found["by_diameter"]
    assert (small["lesions"], small["recall"], small["cases"], small["dice"]) == (1, 0, 0, None)
    assert (middle["lesions"], middle["recall"], middle["covered"], middle["dice"]) == (2, 0.5, 0.25, 0.4)
    assert large["lesions"] == 0 and large["recall"] is None
    assert (larger["from_mm"], larger["below_mm"], larger["recall"], larger["dice"]) == (30, None, 1, 0.8)


def test_a_class_takes_its_own_values_only():
    labels = np.array([[[0, 1, 2, 3]]])
    assert LabelClass("both", (1, 3)).mask(labels).tolist() == [[[False, True, False, True]]]
    assert LabelClass("one", (2,)).mask(labels).tolist() == [[[False, False, True, False]]]
