"""Paired comparison of two methods: differences with bootstrap intervals, Wilcoxon's test and Holm's correction.

The primary metrics are corrected together over classes. All other metrics are exploratory and have only intervals. A
method that is prompted from the reference is not compared with an automatic one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.result_files import COMPARISON, table_text
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.summary import undefined, values_of
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.reliability import band_widths
from sam2_3dmed_jax.metrics.statistics import Interval, bootstrap_means, holm, interval, over_seeds, wilcoxon

# Columns that must have the same values in both methods, for each class.
_ALIKE = ("block", "definition", "empty_policy", "tolerance_mm", "labels")
COLUMNS = (
    *("class", "metric", "cases", "left_out", "mean", "mean_other", "difference", "ci95_low", "ci95_high"),
    *("better", "primary", "p_wilcoxon", "p_holm"),
)

# The difference of one class and metric; None: no case has a value in both methods. The key "class" is a keyword of
# Python, which the class syntax cannot have.
Difference = TypedDict(
    "Difference",
    {
        "class": str,
        "metric": str,
        "cases": int,
        "left_out": int,
        "mean": float | None,
        "mean_other": float | None,
        "difference": float | None,
        "ci95": Interval,
        "better": str | None,  # "method" or "other"
        "p_wilcoxon": float | None,  # of primary metrics
        "primary": bool,
        "p_holm": float | None,
    },
)


class Comparison(TypedDict):
    """The content of `comparison.json`."""

    note: str
    method: str
    other: str
    trained_on_these_cases: str
    trained_on_these_cases_other: str
    block: str
    protocol: str
    protocol_other: str
    cases: int  # that both methods have
    only_one_has: list[str]
    results: list[Difference]
    definitions: dict[str, str]


def compare_methods(rows: Sequence[ScoreRow], others: Sequence[ScoreRow], seed: int = 0) -> Comparison:
    """Compare two methods by paired differences, `rows` minus `others`, of each class and metric that both have.

    Cases without a value in one of the methods are left out of a metric and counted.

    Args:
        rows: of one method; several seeds of a case are averaged.
        others: of the other method.
        seed: of the bootstrap.

    Raises:
        UserError: the methods share no class or case, or were not scored in the same way.
    """
    case_sets = [{row["case"] for row in side} for side in (rows, others)]
    cases = sorted(case_sets[0] & case_sets[1])
    other_names = {row["class"] for row in others}
    names = [name for name in dict.fromkeys(row["class"] for row in rows) if name in other_names]
    if not cases or not names:
        raise UserError(
            f"--compare: the two results share {len(cases)} cases and {len(names)} classes; give results of the same "
            "cases, with the same names of classes"
        )
    rows, others = ([row for row in side if row["case"] in cases and row["class"] in names] for side in (rows, others))
    _check_alike(rows, others, names)
    metrics = _compared_metrics(rows, others)
    results = [_difference(rows, others, name, metric, cases, seed) for name in names for metric in metrics]
    probabilistic = registry.names_requiring("logits")
    results = [entry for entry in results if entry["cases"] or entry["metric"] not in probabilistic]
    corrected = holm([entry["p_wilcoxon"] if entry["primary"] else None for entry in results])
    for entry, p in zip(results, corrected, strict=True):
        entry["p_holm"] = p
    return Comparison(
        note="for research use only",
        method=_values(rows, "method"),
        other=_values(others, "method"),
        trained_on_these_cases=_values(rows, "trained_on_these_cases"),
        trained_on_these_cases_other=_values(others, "trained_on_these_cases"),
        block=_values(rows, "block"),
        protocol=_values(rows, "protocol"),
        protocol_other=_values(others, "protocol"),
        cases=len(cases),
        only_one_has=sorted(case_sets[0] ^ case_sets[1]),
        results=results,
        definitions={
            "difference": "method minus other: mean over cases of the paired differences, each the mean over its seeds",
            "ci95": "percentile interval of the difference, cases drawn together and seeds of each method separately",
            "left_out": "cases without a value in one or both (both masks empty there)",
            "p_wilcoxon": "two-sided signed-rank test over cases, of the primary metrics alone",
            "p_holm": "corrected (Holm) over the primary metrics and classes of this comparison",
            "primary": f"{' and '.join(registry.names_with('primary'))}; the rest is exploratory",
        },
    )


def comparison_texts(comparison: Comparison) -> dict[str, str]:
    """Return the contents of `comparison.csv` and `comparison.json`, by file name."""
    rows = []
    for entry in comparison["results"]:
        low, high = entry["ci95"] or ("", "")
        rows.append({**entry, "ci95_low": low, "ci95_high": high})
    text = json.dumps(comparison, indent=2, allow_nan=False) + "\n"
    return dict(zip(COMPARISON, (table_text(COLUMNS, rows), text), strict=True))


def _check_alike(rows: Sequence[ScoreRow], others: Sequence[ScoreRow], names: Sequence[str]) -> None:
    """Raise `UserError` if the methods were scored or prompted in different ways."""
    for name in names:
        for column in _ALIKE:
            sides = [{_cell(row.get(column)) for row in side if row["class"] == name} for side in (rows, others)]
            if sides[0] != sides[1]:
                words = " and ".join(", ".join(sorted(side)) or "none" for side in sides)
                raise UserError(
                    f"--compare: {column} of {name} is {words}; compare results that were scored in the same way"
                )


def _compared_metrics(rows: Sequence[ScoreRow], others: Sequence[ScoreRow]) -> list[str]:
    names = [metric.name for metric in registry.METRICS if metric.averaged and metric.compared]
    if not rows[0].get("definition"):
        names = [name for name in names if name not in registry.names_requiring("surfaces")]
    same_band = len(band_widths((*rows, *others))) == 1
    for name in registry.names_requiring("logits"):
        known = same_band and all(not np.isnan([row[name] for row in side]).all() for side in (rows, others))
        if name in names and not known:
            names.remove(name)
    return names


def _difference(
    rows: Sequence[ScoreRow], others: Sequence[ScoreRow], name: str, metric: str, cases: Sequence[str], seed: int
) -> Difference:
    sides = [values_of(side, name, metric, cases) for side in (rows, others)]
    means = [over_seeds(side) for side in sides]
    both = ~np.isnan(means[0]) & ~np.isnan(means[1])
    one, other = (mean[both] for mean in means)
    registered = registry.metric(metric)
    assert registered is not None
    entry: Difference = {
        "class": name,
        "metric": metric,
        "cases": int(both.sum()),
        "left_out": int((~both).sum()),
        "mean": None,
        "mean_other": None,
        "difference": None,
        "ci95": None,
        "better": None,
        "p_wilcoxon": None,
        "primary": registered.primary,
        "p_holm": None,
    }
    if not both.any() or any(undefined([r for r in side if r["class"] == name], metric) for side in (rows, others)):
        return entry
    drawn = bootstrap_means([side[both] for side in sides], seed)
    difference = float((one - other).mean())
    entry["mean"], entry["mean_other"], entry["difference"] = float(one.mean()), float(other.mean()), difference
    entry["ci95"] = interval(drawn[:, 0] - drawn[:, 1])
    if difference and registered.better:
        entry["better"] = "method" if (difference > 0) == (registered.better == "higher") else "other"
    if registered.primary:
        entry["p_wilcoxon"] = wilcoxon(one - other)
    return entry


def _values(rows: Sequence[ScoreRow], column: str) -> str:
    return ", ".join(dict.fromkeys(str(row.get(column, "")) for row in rows))


def _cell(value: Any) -> str:
    """Return a value as a table stores it: rows come from memory and from files."""
    return f"{value:.6g}" if isinstance(value, float) and not math.isnan(value) else str(value)
