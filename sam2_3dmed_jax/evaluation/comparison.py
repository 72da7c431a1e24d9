"""Paired comparison of two methods: differences with intervals, a test over cases and seeds, Holm's correction.

The primary metrics are corrected together over classes. All other metrics are exploratory and have only intervals. A
method that is prompted from the reference is not compared with an automatic one. Results do not depend on the order of
rows, and the rows of each case are written, so that every interval and p value can be computed again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from sam2_3dmed_jax.errors import UserError, listed, number_of
from sam2_3dmed_jax.evaluation.class_means import seeds_of, undefined, values_of
from sam2_3dmed_jax.evaluation.result_files import (
    COMPARISON,
    COMPARISON_CASES,
    COMPARISON_TABLE,
    compressed,
    table_text,
)
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.reliability import band_widths
from sam2_3dmed_jax.metrics.statistics import Interval, estimate, holm, interval, over_seeds, t_test, wilcoxon

# Columns that must have the same values in both methods, for each class.
_ALIKE = ("block", "definition", "empty_policy", "tolerance_mm", "labels")
COLUMNS = (
    *("class", "metric", "cases", "left_out", "mean", "mean_other", "difference", "ci95_low", "ci95_high"),
    *("better", "primary", "p_wilcoxon", "p_holm", "p_crossed", "p_crossed_holm", "seed_pairing", "covers"),
    *("standard_error", "degrees_of_freedom"),
)
MATCHED, INDEPENDENT, ONE_SEED = "matched by id", "independent", "one per method"
# Of the p values: name of the test in the tables, key of the p value, and of its correction. The first one is primary.
TESTS = (("cases and seeds", "p_crossed", "p_crossed_holm"), ("Wilcoxon", "p_wilcoxon", "p_holm"))

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
        "p_holm": float | None,  # of `p_wilcoxon`
        "p_crossed": float | None,  # of primary metrics: the primary test
        "p_crossed_holm": float | None,
        "seed_pairing": str,  # `MATCHED`, `INDEPENDENT` or `ONE_SEED`
        "covers": str,  # what the interval and `p_crossed` count as random
        "standard_error": float | None,
        "degrees_of_freedom": float | None,
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
    seeds: list[str]  # ids of training runs; one empty id if no seed is known
    seeds_other: list[str]
    results: list[Difference]
    definitions: dict[str, str]


def compare_methods(rows: Sequence[ScoreRow], others: Sequence[ScoreRow]) -> Comparison:
    """Compare two methods by paired differences, `rows` minus `others`, of each class and metric that both have.

    Cases without a value in one of the methods are left out of a metric and counted. Seeds are matched if both methods
    have the same ids, which holds whether or not the training noise of equal seeds is related; otherwise the seeds of
    each method are independent draws.

    Args:
        rows: of one method; several seeds of a case are averaged.
        others: of the other method.

    Raises:
        UserError: the methods share no class or case, or were not scored in the same way.
    """
    case_sets = [{row["case"] for row in side} for side in (rows, others)]
    cases = sorted(case_sets[0] & case_sets[1])
    other_names = {row["class"] for row in others}
    names = [name for name in dict.fromkeys(row["class"] for row in rows) if name in other_names]
    if not cases or not names:
        raise UserError(
            f"--compare: the two results share {number_of(len(cases), 'case')} and "
            f"{number_of(len(names), 'class', 'classes')}; give results of the same "
            "cases, with the same names of classes"
        )
    rows, others = ([row for row in side if row["case"] in cases and row["class"] in names] for side in (rows, others))
    _check_alike(rows, others, names)
    metrics = _compared_metrics(rows, others)
    results = [_difference(rows, others, name, metric, cases) for name in names for metric in metrics]
    probabilistic = registry.names_requiring("logits")
    results = [entry for entry in results if entry["cases"] or entry["metric"] not in probabilistic]
    wilcoxon_holm, crossed_holm = (holm([entry[p] for entry in results]) for p in ("p_wilcoxon", "p_crossed"))
    for number, entry in enumerate(results):
        entry["p_holm"], entry["p_crossed_holm"] = wilcoxon_holm[number], crossed_holm[number]
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
        seeds=seeds_of(rows),
        seeds_other=seeds_of(others),
        results=results,
        definitions={
            "difference": "method minus other: mean over cases of the paired differences, each the mean over its seeds",
            "ci95": (
                "t interval of the difference over cases and seeds, crossed; Satterthwaite's degrees of freedom, which "
                "few seeds make few; seeds of both methods are matched by id if the ids are the same, else independent"
            ),
            "seed_pairing": f"of the seeds with a value: '{MATCHED}', '{INDEPENDENT}' or '{ONE_SEED}'",
            "covers": "what interval and p_crossed count as random; with one seed, noise between trainings is left out",
            "left_out": "cases without a value in one or both (both masks empty there)",
            "p_crossed": "primary test: two-sided t test that belongs to the interval, of the primary metrics alone",
            "p_wilcoxon": (
                "two-sided signed-rank test over cases, exact up to 50 cases that differ, and at least 2 / 2^n of n "
                "cases; it holds for these trained models only, and takes noise between seeds for a difference"
            ),
            "p_holm": "p_wilcoxon, corrected (Holm) over the primary metrics and classes of this comparison",
            "p_crossed_holm": "p_crossed, corrected in the same way",
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
    return {COMPARISON_TABLE: table_text(COLUMNS, rows), COMPARISON: text}


def comparison_cases(comparison: Comparison, rows: Sequence[ScoreRow], others: Sequence[ScoreRow]) -> dict[str, bytes]:
    """Return the content of `comparison_cases.csv.gz`, by file name: the values that a comparison was computed from.

    It has one row per method, class, case and seed, sorted, with all digits. The bytes depend only on the values.

    Args:
        comparison: of the two methods.
        rows: of the method.
        others: of the other method.
    """
    metrics = list(dict.fromkeys(entry["metric"] for entry in comparison["results"]))
    names = {entry["class"] for entry in comparison["results"]}
    only = set(comparison["only_one_has"])
    keys = ("class", "case", "seed", "fold", "empty")
    table = []
    for side, of in (("method", rows), ("other", others)):
        used = [row for row in of if row["class"] in names and row["case"] not in only]
        for row in sorted(used, key=lambda row: [str(row.get(key, "")) for key in keys]):
            values = {metric: row.get(metric, math.nan) for metric in metrics}
            exact = {metric: "" if math.isnan(value) else repr(float(value)) for metric, value in values.items()}
            table.append({"side": side, **{key: row.get(key, "") for key in keys}, **exact})
    return {COMPARISON_CASES: compressed(table_text(("side", *keys, *metrics), table))}


def _check_alike(rows: Sequence[ScoreRow], others: Sequence[ScoreRow], names: Sequence[str]) -> None:
    """Raise `UserError` if the methods were scored or prompted in different ways."""
    for name in names:
        for column in _ALIKE:
            sides = [{_cell(row.get(column)) for row in side if row["class"] == name} for side in (rows, others)]
            if sides[0] != sides[1]:
                words = " and ".join(listed(sorted(side)) or "none" for side in sides)
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
    rows: Sequence[ScoreRow], others: Sequence[ScoreRow], name: str, metric: str, cases: Sequence[str]
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
        "p_crossed": None,
        "p_crossed_holm": None,
        "seed_pairing": "",
        "covers": "",
        "standard_error": None,
        "degrees_of_freedom": None,
    }
    if not both.any() or any(undefined([r for r in side if r["class"] == name], metric) for side in (rows, others)):
        return entry
    signed = [(weight, side[both]) for weight, side in zip((1.0, -1.0), sides, strict=True)]
    entry["seed_pairing"], entry["covers"] = _seed_design(sides, [seeds_of(side) for side in (rows, others)])
    result = estimate([signed] if entry["seed_pairing"] == MATCHED else [[term] for term in signed])
    assert result is not None
    difference = float((one - other).mean())
    entry["mean"], entry["mean_other"], entry["difference"] = float(one.mean()), float(other.mean()), difference
    entry["ci95"] = interval(result)
    if entry["ci95"]:
        entry["standard_error"], entry["degrees_of_freedom"] = result.error, result.freedom
    if difference and registered.better:
        entry["better"] = "method" if (difference > 0) == (registered.better == "higher") else "other"
    if registered.primary:
        entry["p_wilcoxon"], entry["p_crossed"] = wilcoxon(one - other), t_test(result)
    return entry


def _seed_design(sides: Sequence[np.ndarray], ids: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Return how the seeds of two methods belong together, and which factors vary.

    Args:
        sides: values of each method, `[C, S]`.
        ids: of the seeds of each method.
    """
    scored = [
        [seed for seed, column in zip(names, side.T, strict=True) if not np.isnan(column).all()]
        for side, names in zip(sides, ids, strict=True)
    ]
    several = [len(seeds) > 1 for seeds in scored]
    if not any(several):
        return ONE_SEED, "cases"
    if all(several):
        return MATCHED if scored[0] == scored[1] else INDEPENDENT, "cases and seeds"
    return INDEPENDENT, f"cases and seeds of the {'method' if several[0] else 'other'}"


def _values(rows: Sequence[ScoreRow], column: str) -> str:
    return ", ".join(sorted({str(row.get(column, "")) for row in rows}))


def _cell(value: Any) -> str:
    """Return a value as a table stores it: rows come from memory and from files."""
    return f"{value:.6g}" if isinstance(value, float) and not math.isnan(value) else str(value)
