"""Entropy, calibration error and Brier score computed by hand, the band in millimetres, and the path to the report."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.comparison import compare_methods
from sam2_3dmed_jax.evaluation.report import report_page
from sam2_3dmed_jax.evaluation.result_files import read_results, write_results
from sam2_3dmed_jax.evaluation.score_cases import score_classes
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.evaluation.summary import summarise
from sam2_3dmed_jax.metrics.reliability import (
    BINS,
    UNKNOWN,
    band_statistics,
    boundary_band,
    fit_temperature,
    object_reliability,
    pooled_bins,
)
from sam2_3dmed_jax.prompts.protocols import object_prompts
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_classes import LabelClass

GRID = Grid((8, 8, 4), np.diag([-1.0, -1.0, 3.0, 1.0]))


def statistics(p: list[float], inside: list[int]) -> list[float]:
    return list(band_statistics(np.array(p), np.array(inside, bool)).metrics.values())


def test_the_error_of_a_constant_probability_is_its_difference_from_the_share_inside():
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert statistics([0.25] * 4, [1, 1, 1, 0]) == pytest.approx([entropy, 0.5, (3 * 0.75**2 + 0.25**2) / 4])
    assert statistics([0.5] * 2, [1, 0]) == pytest.approx([1, 0, 0.25])


def test_calibrated_probabilities_have_no_error_and_certain_wrong_ones_have_the_largest():
    p, inside = [0.1] * 10 + [0.7] * 10, [1] + [0] * 9 + [1] * 7 + [0] * 3
    _, error, brier = statistics(p, inside)
    assert error == pytest.approx(0, abs=1e-12) and brier == pytest.approx((0.1 * 0.9 + 0.7 * 0.3) / 2)
    assert statistics([1, 1, 0], [0, 0, 1]) == [0, 1, 1]  # certain and wrong
    assert statistics([1, 0], [1, 0]) == [0, 0, 0]
    assert all(map(math.isnan, statistics([], [])))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_fitted_temperature_makes_overconfident_logits_calibrated_again(temperature: float):
    logits = np.linspace(-6, 6, 41)
    inside = 1000 * special.expit(logits)  # the expected counts of calibrated logits
    fitted = fit_temperature(temperature * logits, inside, 1000 - inside)
    assert fitted == pytest.approx(temperature, rel=1e-4)  # the optimizer's tolerance is 1e-6 in log T


def test_no_temperature_is_fitted_without_voxels_on_both_sides():
    assert fit_temperature(np.ones(3), np.ones(3), np.zeros(3)) is None
    assert fit_temperature(np.zeros(0), np.zeros(0), np.zeros(0)) is None


def test_bins_have_equal_width_and_contain_the_values_of_a_diagram():
    _, bins = band_statistics(np.array([0, 1 / 15 + 1e-9, 1, 0.999]), np.array([0, 1, 1, 0], bool))
    assert len(bins) == BINS and [row[0] for row in bins] == [1, 1, *[0] * 12, 2]
    assert bins[-1] == pytest.approx([2, 1.999, 1])
    pooled = pooled_bins([{"reliability": bins}, {"reliability": bins}, {}])
    assert pooled[-1] == pytest.approx({"from": 14 / 15, "to": 1, "voxels": 4, "probability": 0.9995, "inside": 0.5})
    assert pooled[5]["probability"] is None and pooled_bins([{}]) == []


@pytest.mark.parametrize(("width", "sides"), [(0.9, (0, 0, 0)), (1, (0, 0, 1)), (2.5, (1, 1, 2)), (5, (2, 2, 5))])
def test_the_band_reaches_its_width_in_millimetres_on_each_axis(width: float, sides: tuple[int, int, int]):
    mask = np.zeros((21, 21, 21), bool)
    mask[10, 10, 10] = True
    box, near = boundary_band(mask, (2.5, 2.0, 1.0), width)
    result = np.zeros_like(mask)
    result[box] = near
    z, y, x = np.indices(mask.shape) - 10
    distance = np.sqrt((2.5 * z) ** 2 + (2.0 * y) ** 2 + x**2)
    distance[10, 10, 10] = 1.0  # to its neighbour along x
    assert np.array_equal(result, distance <= width + 1e-6)
    assert tuple(int(np.abs(i[result]).max(initial=0)) for i in (z, y, x)) == sides


def test_both_sides_are_in_the_band_and_the_border_of_the_image_is_not_a_boundary():
    mask = np.zeros((4, 9, 9), bool)
    mask[:, :, :5] = True  # reaches five of the image's borders
    box, near = boundary_band(mask, (1.0, 1.0, 1.0), 2.0)
    result = np.zeros_like(mask)
    result[box] = near
    assert np.array_equal(result.any((0, 1)).nonzero()[0], [3, 4, 5, 6]) and result[:, :, 3:7].all()
    assert not boundary_band(np.ones((3, 3, 3), bool), (1.0, 1.0, 1.0), 9.0)[1].any()


def rows_with_logit(logit: float, method: str = "ours", case: str = "a") -> list[ScoreRow]:
    """Return the row of a box whose voxels all have one logit."""
    reference = np.zeros((4, 8, 8), np.int32)
    reference[1:3, 2:6, 2:6] = 1
    logits = np.full((1, 4, 2, 2), logit, np.float32)
    columns = {"method": method, "seed": "", "fold": ""}
    settings = EvaluationSettings([LabelClass("organ", (1,))], "one-click", method_columns=columns, band_mm=3.0)
    prompts = object_prompts("one-click", reference, GRID.spacing, settings.objects)
    return score_classes(case, reference, reference, GRID, prompts, settings, logits={"organ": logits[0]})


def test_probabilities_come_from_logits_on_the_grid_of_the_image():
    (row,) = rows_with_logit(math.log(3))  # p = 0.75 everywhere
    inside = sum(b[2] for b in row["reliability"]) / sum(b[0] for b in row["reliability"])
    assert row["band_ece"] == pytest.approx(abs(0.75 - inside)) and row["band_mm"] == 3
    assert row["band_brier"] == pytest.approx(inside / 16 + (1 - inside) * 9 / 16)
    metrics, bins = object_reliability(None, np.ones((4, 8, 8), bool), GRID, 3.0)
    assert not bins and all(map(math.isnan, metrics.values()))
    with pytest.raises(UserError, match="--band-mm"):
        EvaluationSettings([LabelClass("organ", (1,))], band_mm=0.0)


def test_if_a_class_has_no_probabilities_neither_has_the_mean_over_classes():
    (row,) = rows_with_logit(2.0)
    other = {**row, **UNKNOWN, "class": "rest", "labels": "2", "band_mm": math.nan, "reliability": []}
    summary = summarise([row, other])
    assert summary["classes"]["organ"]["band_ece"]["n"] == 1 and "macro_dice" in summary
    assert not [name for name in summary["macro"] if name.startswith("band")]
    assert report_page([row, other], summary).count("calibration error at the boundary") == 2  # of organ, and its case
    result = compare_methods([row, other], [row, other])["results"]
    assert [entry["class"] for entry in result if entry["metric"] == "band_ece"] == ["organ"]


def test_reliability_is_written_read_back_pooled_compared_and_drawn(tmp_path: Path):
    rows = [*rows_with_logit(2.0), *rows_with_logit(-1.0, case="b")]
    summary = summarise(rows)
    write_results(rows, summary, tmp_path, {"report.html": report_page(rows, summary)})
    with (tmp_path / "reliability.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * BINS
    again = summarise(read_results(tmp_path))
    stored = json.loads((tmp_path / "summary.json").read_text())["classes"]["organ"]
    assert again["classes"]["organ"]["band_ece"]["mean"] == pytest.approx(stored["band_ece"]["mean"], rel=1e-5)
    for one, other in zip(again["classes"]["organ"]["reliability"]["bins"], stored["reliability"]["bins"], strict=True):
        assert one == (pytest.approx(other, rel=1e-5) if other["voxels"] else other)
    assert "Reliability diagram. organ: " in (tmp_path / "report.html").read_text()
    others = [*rows_with_logit(0.0, "other"), *rows_with_logit(0.0, "other", "b")]
    results = {entry["metric"]: entry for entry in compare_methods(rows, others)["results"]}
    assert results["band_ece"]["mean_other"] == pytest.approx(others[0]["band_ece"])
    assert results["band_entropy"]["better"] is None and results["band_brier"]["better"] is not None
    with pytest.raises(UserError, match="differ in band_mm"):
        summarise([*rows, {**rows[0], "case": "c", "band_mm": 5.0}])
    files = [{**row, **UNKNOWN, "band_mm": math.nan} for row in others]
    assert "band_ece" not in {entry["metric"] for entry in compare_methods(rows, files)["results"]}
    (tmp_path / "reliability.csv").write_text("case,class\n1,2\n")
    with pytest.raises(UserError, match="is not a table of reliability"):
        read_results(tmp_path)
