"""Titles, digits and cells of columns in the report, from the table of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam2_3dmed_jax.evaluation import cost
from sam2_3dmed_jax.evaluation.report.markup import Number, Range
from sam2_3dmed_jax.metrics import registry

_DIGITS = 2  # of columns that are not metrics


def name_of(column: str) -> str:
    """Return the title of a column, with its unit."""
    return cost.TITLES.get(column) or registry.title_of(column)


def limits_of(column: str) -> tuple[float, float] | None:
    """Return the range of possible values of a metric, or None if it is not bounded."""
    metric = registry.metric(column)
    return metric.limits if metric else None


def digits_of(column: str) -> int:
    """Return the number of digits after the point."""
    metric = registry.metric(column)
    return metric.digits if metric else _DIGITS


def number(column: str, value: float | None, exact: str | None = None) -> Number:
    """Return a value of a column as a cell."""
    metric = registry.metric(column)
    return Number(value, digits_of(column), exact, sign=metric is not None and metric.signed)


def interval_cell(column: str, ends: Sequence[float] | None) -> Range | str:
    """Return an interval of a column as a cell; '' without one."""
    return Range(number(column, ends[0]), number(column, ends[1])) if ends else ""


def p_cell(value: float | None) -> Number | str:
    """Return a p value as a cell; '' without one."""
    return "" if value is None else Number(value, 4, least=1e-4)


def row_cell(row: dict[str, Any], column: str) -> Number | str:
    """Return a cell of a case's row; its exact value has six digits, as in `cases.csv`."""
    value = row.get(column, "")
    return number(column, value, f"{value:.6g}") if isinstance(value, float) else str(value)


def tolerances(summary: dict[str, Any]) -> str:
    """Return the tolerance of NSD, or of each class if they differ."""
    of_class = {name: f"{entry['tolerance_mm']:g} mm" for name, entry in summary["classes"].items()}
    if len(set(of_class.values())) == 1:
        return next(iter(of_class.values()))
    return ", ".join(f"{name} {value}" for name, value in of_class.items())
