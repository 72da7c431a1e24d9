"""Summary of the protocol 'interactive': curves over interactions, their area, clicks to a Dice, and seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.evaluation.class_means import metric_entry, values_of
from sam2_3dmed_jax.evaluation.interactions import AREAS, CURVES, THRESHOLDS, area_under_curve, clicks_to
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.metrics.statistics import estimate, interval, spread

RULES = ("initial", "click_rule", "refinement")  # columns with one value in all interactions of a summary
DEFINITIONS = {
    "interaction": "0: the initial prompt of each object; k: the k-th corrective click on each object with an error",
    "interactive": "over cases that hold the object; its curve has a mean and interval per interaction",
    "initial": "'box' or 'click' on the slice with the object's largest area, or 'none': an empty mask before click 1",
    "click_rule": (
        "the voxel deepest inside the largest component (26 neighbours) of the error; depth in 'mm', in 'voxels', or "
        "'challenge': in voxels, ties as the SEGFM3D script draws them; positive if missed, negative if excess"
    ),
    "refinement": (
        "'tracked': a corrected slice is segmented from memory on top of its mask; 'anew': all prompts so far in a new "
        "session; the encoded slices are reused in both"
    ),
    "auc": (
        "area under the curve over interactions 0 to N by the trapezoid rule, divided by N: 1 is a perfect mask from "
        "the initial prompt on"
    ),
    "clicks_to": (
        "number of the first interaction with at least this Dice, the initial prompt being 0; a case that does not "
        "reach it in N interactions is a failure, and counts as N + 1 in mean and median"
    ),
    "seconds_per_interaction": (
        "wall time of a case, all objects together, without clicks and metrics; interaction 0 includes the encoding of "
        "the slices; interactions during which something was compiled are left out"
    ),
}


def rows_after(rows: Sequence[ScoreRow], interaction: int) -> list[ScoreRow]:
    """Return rows with the scores after an interaction in place of the final ones, without those that have none.

    `comparison.compare_methods` compares two methods after the same number of clicks by these rows.

    Args:
        rows: with interactions.
        interaction: its number.
    """
    return [
        {**row, **{name: of_row[interaction][name] for name in (*CURVES, "empty")}}
        for row in rows
        if len(of_row := row.get("interactions") or ()) > interaction
    ]


def summarise_interactions(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Summarise the interactions of one class.

    Args:
        rows: of the class; those without interactions, because the case lacks the object, are left out.

    Returns:
        {"initial", "click_rule", "refinement", "interactions": N, "curve": [{"interaction", metric: `metric_entry`}],
        "auc": {metric: `spread` with "ci95"}, "clicks_to": {"0.80": {"mean", "median", "ci95", "n", "failures",
        "failed": cases}}, "seconds_per_interaction": [`spread`]}, or {} if no row has interactions.

    Raises:
        UserError: the rows differ in their rules or in their number of interactions.
    """
    rows = [row for row in rows if row.get("interactions")]
    if not rows:
        return {}
    rules, last = _check_uniform(rows)
    cases, name = sorted({row["case"] for row in rows}), rows[0]["class"]
    measured = [metric for metric in CURVES if any(not math.isnan(row["interactions"][0][metric]) for row in rows)]
    curve = []
    for number in range(last + 1):
        after = rows_after(rows, number)
        entries = {m: metric_entry(after, m, values_of(after, name, m, cases)) for m in measured}
        curve.append({"interaction": number, **entries})
    areas = {metric: [area_under_curve(_curve(row, metric)) for row in rows] for metric in AREAS if metric in measured}
    seconds = [
        [math.nan if one["compiled"] == "yes" else one["seconds"] for one in row["interactions"]] for row in rows
    ]
    return {
        **rules,
        "interactions": last,
        "curve": curve,
        "auc": {metric: _entry(_table(rows, values), (0.0, 1.0)) for metric, values in areas.items()},
        "clicks_to": {f"{threshold:.2f}": _clicks_to(rows, threshold, last) for threshold in THRESHOLDS},
        "seconds_per_interaction": [
            spread(_table(rows, [of_row[number] for of_row in seconds])) for number in range(last + 1)
        ],
    }


def _check_uniform(rows: Sequence[ScoreRow]) -> tuple[dict[str, str], int]:
    """Return the rules of all interactions, and N.

    Raises:
        UserError: they differ.
    """
    found = {rule: sorted({one[rule] for row in rows for one in row["interactions"]}) for rule in RULES}
    found["interactions"] = sorted({str(len(row["interactions"]) - 1) for row in rows})
    for what, values in found.items():
        if len(values) > 1:
            raise UserError(f"the results differ in {what} ({listed(values)}); summarise them separately")
    return {rule: found[rule][0] for rule in RULES}, int(found["interactions"][0])


def _clicks_to(rows: Sequence[ScoreRow], threshold: float, last: int) -> dict[str, Any]:
    """Return the entry of one threshold."""
    numbers = [clicks_to(threshold, _curve(row, "dice")) for row in rows]
    failed = [row["case"] for row, number in zip(rows, numbers, strict=True) if math.isinf(number)]
    entry = _entry(_table(rows, [min(number, last + 1.0) for number in numbers]), (0.0, last + 1.0))
    return {**entry, "failures": len(failed), "failed": sorted(set(failed))}


def _curve(row: ScoreRow, metric: str) -> list[float]:
    return [one[metric] for one in row["interactions"]]


def _table(rows: Sequence[ScoreRow], values: Sequence[float]) -> np.ndarray:
    """Return one value per row as `[C, S]`, cases by seeds."""
    valued = [{**row, "value": value} for row, value in zip(rows, values, strict=True)]
    return values_of(valued, rows[0]["class"], "value", sorted({row["case"] for row in rows}))


def _entry(table: np.ndarray, limits: tuple[float, float]) -> dict[str, Any]:
    """Return spread and interval of values `[C, S]`."""
    return {**spread(table), "ci95": interval(estimate([[(1.0, table)]]), limits)}
