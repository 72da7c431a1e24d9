"""Mean of a metric of one class over its cases and seeds, with interval and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.statistics import estimate, interval, spread


def metric_entry(
    rows: Sequence[ScoreRow], metric: str, values: np.ndarray, folds: Sequence[Any] = ()
) -> dict[str, Any]:
    """Return mean, interval and spread of a metric of one class.

    Args:
        rows: of the class.
        metric: its column.
        values: `[C, S]`, as `values_of` returns them.
        folds: of the cases; () if all cases are of one fold.

    Returns:
        `statistics.spread` with "ci95"; all None but "n" if the mean is undefined.
    """
    entry: dict[str, Any] = spread(values, folds)
    if undefined(rows, metric):
        entry = {**dict.fromkeys(entry), "n": entry["n"], "undefined": True}
    mean = None if "undefined" in entry else estimate([[(1.0, values)]])
    return {**entry, "ci95": interval(mean, registry.range_of(metric))}


def seeds_of(rows: Sequence[ScoreRow]) -> list[str]:
    """Return the ids of the seeds of rows, sorted; one empty id if no seed is known."""
    return sorted({str(row.get("seed", "")) for row in rows})


def values_of(rows: Sequence[ScoreRow], name: str, metric: str, cases: Sequence[str]) -> np.ndarray:
    """Return the values of a metric of one class.

    Args:
        rows: of one method.
        name: of the class.
        metric: its column.
        cases: whose values are returned.

    Returns:
        float64 `[C, S]`, the cases by the seeds of the rows, as `seeds_of` sorts them; NaN: no value.

    Raises:
        UserError: a case has two values for one seed.
    """
    seeds = seeds_of(rows)
    values = np.full((len(cases), len(seeds)), math.nan)
    filled = set()
    case_index = {case: number for number, case in enumerate(cases)}
    for row in rows:
        if row["class"] == name and row["case"] in case_index:
            cell = case_index[row["case"]], seeds.index(str(row.get("seed", "")))
            if cell in filled:
                raise UserError(
                    f"case {row['case']} has two results for class {name} and seed {row.get('seed') or 'unknown'}; "
                    "give each result once, or evaluate with --seed"
                )
            filled.add(cell)
            values[cell] = row.get(metric, math.nan)
    return values


def undefined(rows: Sequence[ScoreRow], name: str) -> bool:
    """Return whether the mean of a metric would leave out misses, and so reward them.

    This is so if a metric of which lower values are better has no value in a case with exactly one empty mask.
    """
    metric = registry.metric(name)
    return (
        metric is not None
        and metric.hides_misses
        and any(row["empty"] in ("prediction", "reference") and math.isnan(row.get(name, math.nan)) for row in rows)
    )
