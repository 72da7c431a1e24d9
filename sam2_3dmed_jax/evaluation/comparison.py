"""Two methods on the same cases, paired: differences with bootstrap intervals, Wilcoxon's test, Holm's correction.

The primary metrics are Dice and NSD, corrected together over classes; all else is exploratory and has intervals only.
A method that was told where the object is, and one that was not, are not compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.results import COMPARISON, table_text
from sam2_3dmed_jax.evaluation.scores import LOWER_IS_BETTER, SCORES, SURFACE
from sam2_3dmed_jax.evaluation.summary import Row, undefined, values_of
from sam2_3dmed_jax.metrics.reliability import CALIBRATION, widths
from sam2_3dmed_jax.metrics.reliability import COLUMNS as BAND
from sam2_3dmed_jax.metrics.statistics import bootstrap_means, holm, interval, over_seeds, wilcoxon

PRIMARY = ("dice", "nsd")
_ALIKE = ("block", "definition", "empty_policy", "tolerance_mm", "labels")  # of a class, in both
COLUMNS = (
    *("class", "metric", "cases", "left_out", "mean", "mean_other", "difference", "ci95_low", "ci95_high"),
    *("better", "primary", "p_wilcoxon", "p_holm"),
)


def compare(rows: Sequence[Row], others: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Paired differences, `rows` minus `others`, of each class and metric that both have.

    Args:
        rows: of one method; several seeds of a case are averaged.
        others: of the other method.
        seed: of the bootstrap.

    Returns:
        {"method", "other", "trained_on_these_cases" and "protocol" of both, "block", "cases": that both have,
        "only_one_has": ids, "results": [`COLUMNS`], "definitions", "note"}. Cases without a value in either
        method are left out of a metric and counted.

    Raises:
        UserError: no class or case that both have, or results that were not measured alike.
    """
    either = [{row["case"] for row in side} for side in (rows, others)]
    cases = sorted(either[0] & either[1])
    names = [name for name in dict.fromkeys(row["class"] for row in rows) if name in {row["class"] for row in others}]
    if not cases or not names:
        raise UserError(
            f"--compare: the two results share {len(cases)} cases and {len(names)} classes; give results of the same "
            "cases, with the same names of classes"
        )
    rows, others = ([row for row in side if row["case"] in cases and row["class"] in names] for side in (rows, others))
    for name in names:
        for column in _ALIKE:
            sides = [{_cell(row.get(column)) for row in side if row["class"] == name} for side in (rows, others)]
            if sides[0] != sides[1]:
                words = " and ".join(", ".join(sorted(side)) or "none" for side in sides)
                raise UserError(f"--compare: {column} of {name} is {words}; compare what was measured and told alike")
    metrics = [m for m in SCORES if m not in SURFACE or rows[0].get("definition")]
    if len(widths((*rows, *others))) == 1:
        metrics += [m for m in BAND if all(not np.isnan([r[m] for r in side]).all() for side in (rows, others))]
    results = [_result(rows, others, name, metric, cases, seed) for name in names for metric in metrics]
    results = [entry for entry in results if entry["cases"] or entry["metric"] not in BAND]
    corrected = holm([entry["p_wilcoxon"] if entry["primary"] else None for entry in results])
    return {
        "note": "for research use only",
        "method": _named(rows, "method"),
        "other": _named(others, "method"),
        "trained_on_these_cases": _named(rows, "trained_on_these_cases"),
        "trained_on_these_cases_other": _named(others, "trained_on_these_cases"),
        "block": _named(rows, "block"),
        "protocol": _named(rows, "protocol"),
        "protocol_other": _named(others, "protocol"),
        "cases": len(cases),
        "only_one_has": sorted(either[0] ^ either[1]),
        "results": [{**entry, "p_holm": p} for entry, p in zip(results, corrected, strict=True)],
        "definitions": {
            "difference": "method minus other: mean over cases of the paired differences, each the mean over its seeds",
            "ci95": "percentile interval of the difference, cases drawn together and each method's seeds by themselves",
            "left_out": "cases without a value in one or both (both masks empty there)",
            "p_wilcoxon": "two-sided signed-rank test over cases, of the primary metrics alone",
            "p_holm": "corrected (Holm) over the primary metrics and classes of this comparison",
            "primary": f"{' and '.join(PRIMARY)}; the rest is exploratory",
        },
    }


def comparison_texts(found: dict[str, Any]) -> dict[str, str]:
    """What `comparison.csv` and `comparison.json` hold, by their names."""
    results = found["results"]
    rows = [{**row, **dict(zip(COLUMNS[7:9], row["ci95"] or ("", ""), strict=True))} for row in results]
    text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    return dict(zip(COMPARISON, (table_text(COLUMNS, rows), text), strict=True))


def _result(
    rows: Sequence[Row], others: Sequence[Row], name: str, metric: str, cases: Sequence[str], seed: int
) -> dict[str, Any]:
    sides = [values_of(side, name, metric, cases) for side in (rows, others)]
    means = [over_seeds(side) for side in sides]
    both = ~np.isnan(means[0]) & ~np.isnan(means[1])
    one, other = (mean[both] for mean in means)
    entry: dict[str, Any] = {
        "class": name,
        "metric": metric,
        "cases": int(both.sum()),
        "left_out": int((~both).sum()),
        **dict.fromkeys(("mean", "mean_other", "difference", "ci95", "better", "p_wilcoxon")),
        "primary": metric in PRIMARY,
    }
    if not both.any() or any(undefined([r for r in side if r["class"] == name], metric) for side in (rows, others)):
        return entry
    drawn = bootstrap_means([side[both] for side in sides], seed)
    difference = float((one - other).mean())
    better = (-difference if metric in (*LOWER_IS_BETTER, *CALIBRATION) else difference) > 0
    return entry | {
        "mean": float(one.mean()),
        "mean_other": float(other.mean()),
        "difference": difference,
        "ci95": interval(drawn[:, 0] - drawn[:, 1]),
        "better": None if difference == 0 or metric == "band_entropy" else "method" if better else "other",
        "p_wilcoxon": wilcoxon(one - other) if metric in PRIMARY else None,
    }


def _named(rows: Sequence[Row], column: str) -> str:
    return ", ".join(dict.fromkeys(str(row.get(column, "")) for row in rows))


def _cell(value: Any) -> str:
    """As it stands in a table: rows come from memory and from files."""
    return f"{value:.6g}" if isinstance(value, float) and not math.isnan(value) else str(value)
