"""Two methods on the same cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.comparison import compare, comparison_texts
from sam2_3dmed_jax.evaluation.results import COLUMNS, write_files
from sam2_3dmed_jax.evaluation.scores import SCORES
from sam2_3dmed_jax.metrics.statistics import holm

OURS = np.array([0.91, 0.85, 0.80, 0.95, 0.70, 0.88, 0.93, 0.60])
THEIRS = OURS - [0.05, 0.02, 0.01, 0.04, -0.03, 0.06, 0.07, 0.08]


def rows_of(dice: np.ndarray, name: str = "spleen", **more: Any) -> list[dict[str, Any]]:
    blank = {**dict.fromkeys(COLUMNS, ""), "block": "automatic", "definition": "surface-distance", "tolerance_mm": 3.0}
    return [
        {**blank, **dict.fromkeys(SCORES, float(value)), "case": f"c{n}", "class": name, "dice": float(value), **more}
        for n, value in enumerate(dice)
    ]


def result(found: dict[str, Any], metric: str, name: str = "spleen") -> dict[str, Any]:
    return next(entry for entry in found["results"] if (entry["class"], entry["metric"]) == (name, metric))


def test_differences_are_paired_and_tested_and_corrected_over_classes():
    ours = rows_of(OURS, method="ours") + rows_of(OURS, "liver", method="ours")
    theirs = rows_of(THEIRS, method="theirs") + rows_of(OURS - 0.1 * (OURS - 0.5), "liver", method="theirs")
    found = compare(ours, theirs)
    dice = result(found, "dice")
    assert (found["method"], found["other"], found["cases"]) == ("ours", "theirs", 8)
    assert dice["difference"] == pytest.approx(np.mean(OURS - THEIRS)) and dice["better"] == "method"
    low, high = dice["ci95"]
    assert low < dice["difference"] < high and high - low < np.ptp(OURS - THEIRS)
    assert dice["p_wilcoxon"] == pytest.approx(stats.wilcoxon(OURS - THEIRS).pvalue)
    tested = [entry for entry in found["results"] if entry["p_wilcoxon"] is not None]
    assert {(entry["class"], entry["metric"]) for entry in tested} == {
        (name, metric) for name in ("spleen", "liver") for metric in ("dice", "nsd")
    }
    assert [entry["p_holm"] for entry in tested] == holm([entry["p_wilcoxon"] for entry in tested])


def test_less_is_better_of_a_distance():
    assert result(compare(rows_of(OURS), rows_of(THEIRS)), "hd95_mm")["better"] == "other"
    assert result(compare(rows_of(OURS), rows_of(OURS)), "hd95_mm")["better"] is None


def test_seeds_are_averaged_before_cases_are_paired():
    seeds = rows_of(OURS - 0.02, seed="0") + rows_of(OURS + 0.02, seed="1")
    assert result(compare(seeds, rows_of(THEIRS)), "dice")["p_wilcoxon"] == pytest.approx(
        result(compare(rows_of(OURS), rows_of(THEIRS)), "dice")["p_wilcoxon"]
    )


def test_cases_of_one_method_and_cases_without_a_value_are_told():
    ours, theirs = rows_of(OURS), rows_of(THEIRS[:6])
    ours[0]["dice"] = float("nan")
    found = compare(ours, theirs)
    assert found["only_one_has"] == ["c6", "c7"] and found["cases"] == 6
    assert (result(found, "dice")["cases"], result(found, "dice")["left_out"]) == (5, 1)


def test_a_miss_without_a_distance_leaves_nothing_to_compare():
    ours = rows_of(OURS)
    ours[2] |= {"hd95_mm": float("nan"), "empty": "prediction"}
    entry = result(compare(ours, rows_of(THEIRS)), "hd95_mm")
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
def test_what_was_not_measured_or_told_alike_is_not_compared(more: dict[str, Any], named: str):
    with pytest.raises(UserError, match=named):
        compare(rows_of(OURS), [{**row, **more} for row in rows_of(THEIRS)])


def test_a_comparison_is_written_as_json_and_csv(tmp_path: Path):
    write_files(comparison_texts(compare(rows_of(OURS), rows_of(THEIRS))), tmp_path / "out")
    header, first, *_ = (tmp_path / "out" / "comparison.csv").read_text().splitlines()
    assert header.startswith("class,metric,cases,left_out,mean,mean_other,difference,ci95_low,ci95_high")
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    entry = json.loads((tmp_path / "out" / "comparison.json").read_text())["results"][0]
    assert float(cells["ci95_low"]) == pytest.approx(entry["ci95"][0], rel=1e-5)
