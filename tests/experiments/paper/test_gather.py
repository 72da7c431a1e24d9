"""Tables of a programme, computed again from the values of their cases."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.paper import phantom
from experiments.paper.gather import CASE_COLUMNS, FURTHER, METRICS, PooledResults, case_rows, comparisons
from experiments.paper.programme_tables import _comparison_table
from experiments.paper.variants import ONE_CLICK
from sam2_3dmed_jax.evaluation.result_files import case_columns, compressed, table_text
from sam2_3dmed_jax.evaluation.summary import summarise
from sam2_3dmed_jax.metrics.statistics import estimate, holm, interval, over_seeds, t_test, wilcoxon

PROGRAMME = phantom.programme(Path("cohorts"), phantom.Size())
CASES, SEEDS = 6, "012"


def pooled(variant: str, rng: np.random.Generator) -> PooledResults:
    blank = {**dict.fromkeys(case_columns(), 0.0), "block": "reference-prompted", "definition": "surface-distance"}
    blank |= {"empty": "", "missing": "", "lesions_reference": "", "tolerance_mm": 3.0}
    rows = []
    for seed in SEEDS:
        noise = rng.normal(0, 0.02)
        for case in range(CASES):
            # Six digits, as in the files that the rows are read from.
            values = {metric: round(0.5 + noise + 0.05 * rng.normal(), 6) for metric in (*METRICS, *FURTHER)}
            columns: dict[str, Any] = {
                "case": f"c{case}",
                "class": "spleen",
                "seed": seed,
                "fold": "0",
                "method": variant,
            }
            rows.append({**blank, **columns, **values})
    (named,) = [entry for entry in PROGRAMME.rows if entry.name == variant]
    return PooledResults(PROGRAMME.tasks[0], named, ONE_CLICK, (), 3, rows, summarise(rows))


@pytest.fixture(scope="module")
def found() -> list[PooledResults]:
    rng = np.random.default_rng(0)
    return [pooled(variant, rng) for variant in ("neither", "srpp", "full")]


@pytest.fixture(scope="module")
def written(found: list[PooledResults]) -> list[dict[str, str]]:
    content = compressed(table_text(CASE_COLUMNS, case_rows(found)))
    assert content == compressed(table_text(CASE_COLUMNS, case_rows(found)))
    return list(csv.DictReader(io.StringIO(gzip.decompress(content).decode())))


def values(written: list[dict[str, str]], variant: str, metric: str) -> np.ndarray:
    cells = {(row["case"], row["seed"]): float(row[metric]) for row in written if row["variant"] == variant}
    return np.array([[cells[f"c{case}", seed] for seed in SEEDS] for case in range(CASES)])


def test_every_interval_of_a_mean_is_computed_again_from_the_written_cases(found, written):
    for entry in found:
        for metric in METRICS:
            of_metric = values(written, entry.variant.name, metric)
            again = entry.summary["classes"]["spleen"][metric]
            assert again["mean"] == pytest.approx(over_seeds(of_metric).mean())
            assert again["ci95"] == pytest.approx(interval(estimate([[(1.0, of_metric)]])))


def test_every_difference_and_p_value_is_computed_again_from_the_written_cases(found, written):
    compared = comparisons(found)
    tested = []
    for row in compared:
        one, other = (values(written, row[side], row["metric"]) for side in ("variant", "other"))
        result = estimate([[(1.0, one), (-1.0, other)]])
        assert [row["ci95_low"], row["ci95_high"]] == pytest.approx(interval(result))
        assert (row["covers"], row["seed_pairing"], row["seeds"]) == ("cases and seeds", "matched by id", 3)
        if row["primary"]:
            assert row["p_crossed"] == pytest.approx(t_test(result))
            assert row["p_wilcoxon"] == pytest.approx(wilcoxon(over_seeds(one) - over_seeds(other)))
            tested.append(row)
        else:
            assert row["p_crossed"] == row["p_crossed_holm"] == row["p_wilcoxon"] == row["p_holm"] == ""
    assert [(row["variant"], row["metric"]) for row in tested] == [("full", "dice"), ("full", "nsd")]
    for p_value, corrected in (("p_crossed", "p_crossed_holm"), ("p_wilcoxon", "p_holm")):
        assert [row[corrected] for row in tested] == pytest.approx(holm([row[p_value] for row in tested]))


def test_the_table_of_comparisons_shows_the_primary_test_first_and_what_it_covers(found):
    table = _comparison_table(PROGRAMME, comparisons(found))
    assert table is not None
    assert list(table.header)[-4:] == ["covers", "p (cases and seeds, Holm)", "p (Wilcoxon, Holm)", "kind"]
    assert "takes noise between trainings for a difference" in table.caption
