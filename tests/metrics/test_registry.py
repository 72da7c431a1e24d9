"""The table of metrics: values computed by hand, slanted grids, and what a new or a wrong entry does."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.mask_pair import MaskPair, MetricSettings
from sam2_3dmed_jax.metrics.registry import Metric, compute_metrics, names_requiring
from sam2_3dmed_jax.volume.geometry import Grid


def grid_of(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (5.0, 2.0, 1.0)) -> Grid:
    depth, height, width = shape
    dz, dy, dx = spacing
    return Grid((width, height, depth), np.diag([-dx, -dy, dz, 1.0]), "scan.nii.gz")


def slanted(shape: tuple[int, int, int], shear: float) -> Grid:
    """Return a grid whose slices are each shifted by `shear` voxels along the rows, as a tilted gantry does."""
    grid = grid_of(shape)
    affine = grid.affine.copy()
    affine[1, 2] = -2.0 * shear
    return Grid(grid.shape, affine, "tilted.nii.gz")


def scores(prediction: np.ndarray, reference: np.ndarray, grid: Grid, **options: Any) -> dict[str, float]:
    return compute_metrics(MaskPair(prediction, reference, grid, **options))


def test_prompted_slices_and_voxels_outside_the_extent_are_counted_separately():
    reference, prediction = np.zeros((2, 6, 4, 4), bool)
    reference[2:4, 1:3, 1:3] = True
    prediction[2, 1:3, 1:3] = True
    prediction[5, :, :] = True
    values = scores(prediction, reference, grid_of((6, 4, 4)), prompted_slices=[2])
    assert values["dice"] == 2 * 4 / (8 + 20) and values["iou"] == 4 / 24
    assert values["dice_without_prompted_slices"] == 0 == values["iou_without_prompted_slices"]
    assert values["volume_ml_prediction"] == pytest.approx(20 * 0.01)
    assert values["volume_error_ml"] == pytest.approx(12 * 0.01)
    assert values["volume_error_percent"] == pytest.approx(150)
    assert values["fp_ml_outside_extent"] == pytest.approx(16 * 0.01)


def test_scores_without_prompted_slices_use_the_other_slices():
    reference, prediction = np.zeros((2, 6, 4, 4), bool)
    reference[2:4, 1:3, 1:3] = True
    prediction[2:4, 1:3, 1:4] = True
    values = scores(prediction, reference, grid_of((6, 4, 4)), prompted_slices=[2])
    assert values["dice_without_prompted_slices"] == 2 * 4 / (4 + 6)
    assert values["iou_without_prompted_slices"] == 4 / 6


@pytest.mark.parametrize("predicted", [False, True])
def test_a_reference_on_prompted_slices_only_has_no_score_without_them(predicted: bool):
    reference, prediction = np.zeros((2, 6, 4, 4), bool)
    reference[2, 1:3, 1:3] = True
    prediction[2:5] = predicted
    values = scores(prediction, reference, grid_of((6, 4, 4)), prompted_slices=[2])
    assert math.isnan(values["dice_without_prompted_slices"]) and values["dice"] >= 0


@pytest.mark.parametrize(
    ("predicted", "expected_mm"),
    [
        ((2, 3), 0),  # inside the reference, slices 2 to 4
        ((4,), 0),
        ((1, 3, 5), 5),  # one slice of 5 mm beyond both ends
        ((0, 4, 5), 10),  # two below, one above: the larger
        ((3, 7), 15),  # a gap before the farthest slice
        ((), 0),
    ],
)
def test_leakage_is_the_distance_of_the_farthest_slice_beyond_an_end_of_the_reference(
    predicted: tuple[int, ...], expected_mm: float
):
    reference, prediction = np.zeros((2, 8, 4, 4), bool)
    reference[2:5, 1:3, 1:3] = True
    prediction[list(predicted), 2, 2] = True
    assert scores(prediction, reference, grid_of((8, 4, 4)))["leakage_mm"] == expected_mm


def test_leakage_without_a_reference_is_the_extent_of_the_prediction():
    reference, prediction = np.zeros((2, 8, 4, 4), bool)
    assert math.isnan(scores(prediction, reference, grid_of((8, 4, 4)))["leakage_mm"])
    prediction[3:6, 2, 2] = True
    assert scores(prediction, reference, grid_of((8, 4, 4)))["leakage_mm"] == 3 * 5


def test_leakage_on_a_slanted_grid_is_measured_along_the_slice_axis():
    reference, prediction = np.zeros((2, 8, 4, 4), bool)
    reference[2, 1, 1] = prediction[5, 1, 1] = True
    grid = slanted(reference.shape, 0.3)  # each slice is 5 mm higher and 0.6 mm further along the rows
    values = scores(prediction, reference, grid, settings=MetricSettings(surfaces=False))
    assert values["leakage_mm"] == pytest.approx(3 * math.hypot(5, 0.6))


def test_without_surface_metrics_a_slanted_grid_is_accepted():
    mask = np.zeros((4, 6, 6), bool)
    mask[1:3, 2:4, 2:4] = True
    values = scores(mask, mask, slanted(mask.shape, 0.3), settings=MetricSettings(surfaces=False))
    assert values["dice"] == 1 and all(math.isnan(values[metric]) for metric in names_requiring("surfaces"))


def test_the_volume_of_a_voxel_on_a_slanted_grid_is_the_determinant():
    mask = np.zeros((4, 6, 6), bool)
    mask[1:3, 2:4, 2:4] = True
    values = scores(mask, mask, slanted(mask.shape, 0.3), settings=MetricSettings(surfaces=False))
    assert values["volume_ml_prediction"] == pytest.approx(8 * 5 * 2 * 1 / 1000)


def test_surface_metrics_on_a_slanted_grid_are_refused_with_the_file_and_a_hint():
    mask = np.ones((4, 6, 6), bool)
    with pytest.raises(UserError, match=r"tilted\.nii\.gz has axes that are not orthogonal.*--resample.*--metrics"):
        scores(mask, mask, slanted(mask.shape, 0.3))
    scores(mask, mask, slanted(mask.shape, 1e-4))  # rounding in a header


def test_surface_distances_on_a_slanted_grid_use_the_positions_of_voxels():
    # 30 slices that slide by half a row each: a leaning column, and the same five rows further on.
    reference, prediction = np.zeros((2, 30, 40, 12), bool)
    reference[:, 5:15, 3:9] = True
    prediction[:, 10:20, 3:9] = True
    values = scores(prediction, reference, slanted(reference.shape, 0.5), settings=MetricSettings(resample=True))
    # Rows are 2 mm apart, and the column leans by 1 mm in 5: its faces are 10 mm apart along a row, so less across.
    across = 10 * math.cos(math.atan(1 / 5))
    assert values["hd_mm"] == pytest.approx(10, abs=1)  # at the ends the rows themselves count; half a voxel either way
    assert values["hd95_mm"] == pytest.approx(across, abs=1)


def test_an_unknown_definition_or_policy_is_refused_with_the_choices():
    with pytest.raises(UserError, match="surface-distance, monai, medpy"):
        MetricSettings("plastimatch")
    with pytest.raises(UserError, match="diagonal, nan"):
        MetricSettings(empty="zero")


def count_wrong_voxels(pair: MaskPair) -> Mapping[str, float]:
    """Return the dummy metric: the number of wrong voxels."""
    return {"wrong_voxels": float((pair.prediction ^ pair.reference).sum())}


WRONG_VOXELS = Metric("wrong_voxels", "wrong voxels", "", "lower", "voxels that differ", 1, count_wrong_voxels)


def test_a_new_metric_needs_a_function_and_an_entry_to_appear_in_all_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(registry, "METRICS", (*registry.METRICS, replace(WRONG_VOXELS, headline=True)))
    reference = np.zeros((8, 8, 6), np.uint8)
    reference[2:5, 2:5, 1:4] = 1
    prediction = np.roll(reference, 1, 0)
    for folder, labels in (("references", reference), ("ours", prediction), ("theirs", reference)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / folder / "a.nii.gz")
    words = ["evaluate", "--references", str(tmp_path / "references"), "--classes", "1=organ"]
    assert main([*words, "--predictions", str(tmp_path / "theirs"), "--out", str(tmp_path / "other")]) == 0
    compared = ["--compare", str(tmp_path / "other"), "--out", str(tmp_path / "out")]
    assert main([*words, "--predictions", str(tmp_path / "ours"), *compared]) == 0
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    wrong = float((prediction != reference).sum())
    assert float(row["wrong_voxels"]) == wrong
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["classes"]["organ"]["wrong_voxels"]["mean"] == summary["macro_wrong_voxels"] == wrong
    assert summary["definitions"]["wrong_voxels"] == "voxels that differ"
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (entry,) = [entry for entry in comparison["results"] if entry["metric"] == "wrong_voxels"]
    assert entry["difference"] == wrong and entry["better"] == "other"
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("wrong voxels") >= 4  # scores, comparison, worst cases and all cases
    assert f"wrong voxels {wrong:.0f}" in capsys.readouterr().out


def test_a_registered_metric_that_is_not_computed_is_an_error(monkeypatch: pytest.MonkeyPatch):
    forgotten = replace(WRONG_VOXELS, compute=lambda pair: {})
    monkeypatch.setattr(registry, "METRICS", (*registry.METRICS, forgotten))
    mask = np.ones((2, 3, 3), bool)
    with pytest.raises(ValueError, match=r"does not compute the registered metrics \['wrong_voxels'\]"):
        scores(mask, mask, grid_of((2, 3, 3)))


def test_a_computed_metric_that_is_not_registered_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "METRICS", tuple(entry for entry in registry.METRICS if entry.name != "iou"))
    mask = np.ones((2, 3, 3), bool)
    with pytest.raises(ValueError, match=r"computes \['iou'\], which metrics/registry.py does not register"):
        scores(mask, mask, grid_of((2, 3, 3)))


def test_names_of_metrics_are_unique_and_all_metrics_are_defined():
    names = [entry.name for entry in registry.METRICS]
    assert len(set(names)) == len(names)
    assert all(entry.definition and entry.label for entry in registry.METRICS)


def test_scores_do_not_depend_on_empty_rows_and_columns_around_the_objects():
    rng = np.random.default_rng(0)
    prediction, reference = rng.random((2, 6, 7, 9)) < 0.4
    wide = [np.pad(mask, ((0, 0), (11, 4), (2, 20))) for mask in (prediction, reference)]
    for options in ({"prompted_slices": [3]}, {"tumour": True}):
        expected = scores(prediction, reference, grid_of((6, 7, 9)), **options)
        assert scores(*wide, grid_of((6, 22, 31)), **options) == pytest.approx(expected, nan_ok=True)
