"""Paired comparison of two methods on the same cases."""

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.comparison import TESTS, compare_methods, comparison_cases, comparison_texts
from sam2_3dmed_jax.evaluation.console_lines import difference_line
from sam2_3dmed_jax.evaluation.cost import MEASURED
from sam2_3dmed_jax.evaluation.report.sections import comparison_table
from sam2_3dmed_jax.evaluation.result_files import case_columns, write_files
from sam2_3dmed_jax.evaluation.summary import summarise
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


def seeded(dice: np.ndarray, ids: str, shift: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Return rows of the seeds `ids`, each with its own noise."""
    noise = {seed: np.random.default_rng(int(seed) + shift).normal(0, 0.02, 1 + len(dice)) for seed in ids}
    return [row for seed in ids for row in rows_of(dice + noise[seed][0] + noise[seed][1:] / 2, seed=seed, **more)]


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


def test_the_primary_test_is_over_cases_and_seeds_and_corrected_over_classes():
    ours = seeded(OURS, "012") + seeded(OURS, "012", 5, **{"class": "liver"})
    theirs = seeded(THEIRS, "345") + seeded(THEIRS, "345", 5, **{"class": "liver"})
    comparison = compare_methods(ours, theirs)
    tested = [entry for entry in comparison["results"] if entry["p_crossed"] is not None]
    assert [(entry["class"], entry["metric"]) for entry in tested] == [
        (name, metric) for name in ("spleen", "liver") for metric in ("dice", "nsd")
    ]
    assert [entry["p_crossed_holm"] for entry in tested] == holm([entry["p_crossed"] for entry in tested])
    for entry in tested:
        assert (entry["p_crossed"] < 0.05) == (entry["ci95"][0] > 0 or entry["ci95"][1] < 0)
        assert entry["covers"] == "cases and seeds" and 2 <= entry["degrees_of_freedom"] <= 11


def test_seeds_are_matched_by_id_and_otherwise_independent():
    def means(rows: list[dict[str, Any]]) -> list[float]:
        return [np.mean([r["dice"] for r in rows if r["seed"] == seed]) for seed in sorted({r["seed"] for r in rows})]

    # Cases differ equally and no residual is left, so that only seeds vary.
    ours, same, others = (
        [row for seed in ids for row in rows_of(OURS + level * (1 + int(seed)) ** 2, seed=seed)]
        for ids, level in (("012", 0.01), ("201", 0.02), ("345", 0.001))
    )
    matched, apart = (compare_methods(ours, side) for side in (same, others))
    assert (result(matched, "dice")["seed_pairing"], result(apart, "dice")["seed_pairing"]) == (
        "matched by id",
        "independent",
    )
    assert (matched["seeds"], apart["seeds_other"]) == (["0", "1", "2"], ["3", "4", "5"])
    assert result(matched, "dice")["p_crossed"] == pytest.approx(stats.ttest_rel(means(ours), means(same)).pvalue)
    welch = stats.ttest_ind(means(ours), means(others), equal_var=False)
    assert result(apart, "dice")["p_crossed"] == pytest.approx(welch.pvalue)


def test_the_console_calls_fewer_than_six_cases_too_few_to_be_significant():
    lines = {
        cases: difference_line(
            result(compare_methods(rows_of(OURS[:cases]), rows_of(THEIRS[:cases])), "dice"), "theirs"
        )
        for cases in (3, 5, 6)
    }
    assert "too few to be significant (the exact Wilcoxon test has p >= 0.25)" in lines[3]
    assert "p >= 0.062" in lines[5] and "too few" not in lines[6]


def test_with_one_seed_the_results_state_that_only_cases_are_covered():
    comparison = compare_methods(rows_of(OURS), rows_of(THEIRS))
    dice = result(comparison, "dice")
    assert dice["seed_pairing"] == "one per method" and dice["covers"] == "cases"
    assert dice["p_crossed"] == pytest.approx(stats.ttest_rel(OURS, THEIRS).pvalue)
    assert "(over cases, Holm)" in difference_line(dice, "theirs")
    assert result(compare_methods(rows_of(OURS), seeded(THEIRS, "01")), "dice")["covers"] == (
        "cases and seeds of the other"
    )


@pytest.mark.parametrize("ids", ["012", "345"])
def test_the_order_of_rows_changes_no_bit(ids: str):
    ours, theirs = seeded(OURS, "012", method="ours"), seeded(THEIRS, ids, method="theirs")
    ours[3]["dice"] = theirs[5]["dice"] = float("nan")
    for row in ours:
        row.update(dict.fromkeys(MEASURED, 1.0), lesions_reference="")
    comparison, summary = compare_methods(ours, theirs), summarise(ours)
    files = comparison_cases(comparison, ours, theirs)
    for seed in range(3):
        for rows in (ours, theirs):
            random.Random(seed).shuffle(rows)
        assert compare_methods(ours, theirs) == comparison
        assert comparison_cases(comparison, ours, theirs) == files
        assert repr(summarise(ours)) == repr(summary)


def test_every_interval_and_p_value_is_computed_again_from_the_written_cases():
    ours = seeded(OURS, "012") + seeded(OURS, "012", 5, **{"class": "liver"})
    theirs = seeded(THEIRS, "012", 7) + seeded(OURS, "012", 9, **{"class": "liver"})
    comparison = compare_methods(ours, theirs[:-8])  # the last seed has no livers
    written = comparison_cases(comparison, ours, theirs[:-8])["comparison_cases.csv.gz"]
    table = list(csv.DictReader(io.StringIO(gzip.decompress(written).decode())))
    expected = []
    for entry in comparison["results"]:
        sides = []
        for side in ("method", "other"):
            rows = [row for row in table if (row["side"], row["class"]) == (side, entry["class"])]
            seeds = sorted({row["seed"] for row in rows})
            values = {(row["case"], row["seed"]): float(row[entry["metric"]]) for row in rows}
            sides.append(np.array([[values[f"c{n}", seed] for seed in seeds] for n in range(8)]))
        means = sides[0].mean(1) - sides[1].mean(1)
        low, high, p = crossed(sides if entry["class"] == "liver" else [sides[0] - sides[1]], means)
        assert entry["difference"] == pytest.approx(means.mean()) and entry["ci95"] == pytest.approx([low, high])
        wilcoxon = stats.wilcoxon(means, method="exact").pvalue
        expected.append([p, wilcoxon] if entry["primary"] else [None, None])
    for number, (_, p_value, corrected) in enumerate(TESTS):
        again = [values[number] for values in expected]
        assert [entry[p_value] for entry in comparison["results"]] == pytest.approx(again)
        assert [entry[corrected] for entry in comparison["results"]] == pytest.approx(holm(again))


def crossed(groups: list[np.ndarray], means: np.ndarray) -> tuple[float, float, float]:
    """Return interval and p value by the definition in docs/explanation/evaluation.md, for values without holes."""
    C = len(means)
    terms = [(means.var(ddof=1) / C, C - 1)]
    rest = []
    for values in groups:
        S = values.shape[1]
        residuals = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
        terms.append((values.mean(0).var(ddof=1) / S, S - 1))
        rest.append(((residuals**2).sum() / ((C - 1) * (S - 1)) / (C * S), (C - 1) * (S - 1)))
    seeds = sum(variance for variance, _ in terms[1:])
    variance = max(terms[0][0] + seeds - sum(v for v, _ in rest), terms[0][0], seeds)
    freedom = max(variance**2 / sum(v**2 / f for v, f in (*terms, *rest)), min(f for _, f in terms))
    error = np.sqrt(variance)
    reach = stats.t.ppf(0.975, freedom) * error
    return means.mean() - reach, means.mean() + reach, 2 * stats.t.sf(abs(means.mean()) / error, freedom)


def test_a_comparison_of_an_earlier_version_is_still_shown():
    comparison: dict[str, Any] = dict(compare_methods(rows_of(OURS), rows_of(THEIRS)))
    for key in ("seeds", "seeds_other"):
        del comparison[key]
    new = ("p_crossed", "p_crossed_holm", "seed_pairing", "covers", "standard_error", "degrees_of_freedom")
    comparison["results"] = [{k: v for k, v in entry.items() if k not in new} for entry in comparison["results"]]
    assert "p (Wilcoxon, Holm)" in comparison_table(comparison)  # type: ignore[arg-type]


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
