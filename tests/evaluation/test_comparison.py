"""Paired comparison of two methods on the same cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.comparison import compare_methods, comparison_texts
from sam2_3dmed_jax.evaluation.result_files import case_columns, write_files
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.statistics import holm

COMPARED = registry.names_requiring("masks", "surfaces", "prompts")
OURS = np.array([0.91, 0.85, 0.80, 0.95, 0.70, 0.88, 0.93, 0.60])
THEIRS = OURS - [0.05, 0.02, 0.01, 0.04, -0.03, 0.06, 0.07, 0.08]


def rows_of(dice: np.ndarray, name: str = "spleen", **more: Any) -> list[dict[str, Any]]:
    blank = {
        **dict.fromkeys(case_columns(), ""),
        "block": "automatic",
        "definition": "surface-distance",
        "tolerance_mm": 3.0,
    }
    return [
        {**blank, **dict.fromkeys(COMPARED, float(value)), "case": f"c{n}", "class": name, "dice": float(value), **more}
        for n, value in enumerate(dice)
    ]


def result(comparison: dict[str, Any], metric: str, name: str = "spleen") -> dict[str, Any]:
    return next(entry for entry in comparison["results"] if (entry["class"], entry["metric"]) == (name, metric))


def test_differences_are_paired_tested_and_corrected_over_classes():
    ours = rows_of(OURS, method="ours") + rows_of(OURS, "liver", method="ours")
    theirs = rows_of(THEIRS, method="theirs") + rows_of(OURS - 0.1 * (OURS - 0.5), "liver", method="theirs")
    comparison = compare_methods(ours, theirs)
    dice = result(comparison, "dice")
    assert (comparison["method"], comparison["other"], comparison["cases"]) == ("ours", "theirs", 8)
    assert dice["difference"] == pytest.approx(np.mean(OURS - THEIRS)) and dice["better"] == "method"
    low, high = dice["ci95"]
    assert low < dice["difference"] < high and high - low < np.ptp(OURS - THEIRS)
    assert dice["p_wilcoxon"] == pytest.approx(stats.wilcoxon(OURS - THEIRS).pvalue)
    tested = [entry for entry in comparison["results"] if entry["p_wilcoxon"] is not None]
    assert {(entry["class"], entry["metric"]) for entry in tested} == {
        (name, metric) for name in ("spleen", "liver") for metric in ("dice", "nsd")
    }
    assert [entry["p_holm"] for entry in tested] == holm([entry["p_wilcoxon"] for entry in tested])


def test_a_lower_distance_is_better():
    assert result(compare_methods(rows_of(OURS), rows_of(THEIRS)), "hd95_mm")["better"] == "other"
    assert result(compare_methods(rows_of(OURS), rows_of(OURS)), "hd95_mm")["better"] is None


def test_seeds_are_averaged_before_cases_are_paired():
    seeds = rows_of(OURS - 0.02, seed="0") + rows_of(OURS + 0.02, seed="1")
    assert result(compare_methods(seeds, rows_of(THEIRS)), "dice")["p_wilcoxon"] == pytest.approx(
        result(compare_methods(rows_of(OURS), rows_of(THEIRS)), "dice")["p_wilcoxon"]
    )


def test_cases_of_one_method_and_cases_without_a_value_are_reported():
    ours, theirs = rows_of(OURS), rows_of(THEIRS[:6])
    ours[0]["dice"] = float("nan")
    comparison = compare_methods(ours, theirs)
    assert comparison["only_one_has"] == ["c6", "c7"] and comparison["cases"] == 6
    assert (result(comparison, "dice")["cases"], result(comparison, "dice")["left_out"]) == (5, 1)


def test_a_miss_without_a_distance_cannot_be_compared():
    ours = rows_of(OURS)
    ours[2] |= {"hd95_mm": float("nan"), "empty": "prediction"}
    entry = result(compare_methods(ours, rows_of(THEIRS)), "hd95_mm")
    assert entry["difference"] is None is entry["ci95"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"block": "reference-prompted"}, "block of spleen is automatic and reference-prompted"),
        ({"tolerance_mm": 2.0}, "tolerance_mm of spleen is 3 and 2"),
        ({"definition": "monai"}, "definition of spleen"),
        ({"class": "liver"}, "share 8 cases and 0 classes"),
    ],
)
def test_results_that_were_scored_or_prompted_differently_are_not_compared(more: dict[str, Any], named: str):
    with pytest.raises(UserError, match=named):
        compare_methods(rows_of(OURS), [{**row, **more} for row in rows_of(THEIRS)])


def test_a_comparison_is_written_as_json_and_csv(tmp_path: Path):
    write_files(comparison_texts(compare_methods(rows_of(OURS), rows_of(THEIRS))), tmp_path / "out")
    header, first, *_ = (tmp_path / "out" / "comparison.csv").read_text().splitlines()
    assert header.startswith("class,metric,cases,left_out,mean,mean_other,difference,ci95_low,ci95_high")
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    entry = json.loads((tmp_path / "out" / "comparison.json").read_text())["results"][0]
    assert float(cells["ci95_low"]) == pytest.approx(entry["ci95"][0], rel=1e-5)
