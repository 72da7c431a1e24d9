"""Headline of a report: the method, its Dice and NSD with intervals, what its prompts gave away, and what to doubt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from sam2_3dmed_jax.errors import number_of
from sam2_3dmed_jax.evaluation.comparison import Comparison, Difference
from sam2_3dmed_jax.evaluation.report.markup import Cell, Lines, Number, Range, table
from sam2_3dmed_jax.evaluation.report.wording import digits_of, name_of, p_cell, tolerances
from sam2_3dmed_jax.evaluation.score_row import AUTOMATIC, ScoreRow
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.statistics import SIGNIFICANT, smallest_wilcoxon_p
from sam2_3dmed_jax.prompts.protocols import FROM_PREDICTIONS, INFORMATION, NEAREST_COMPONENT

_CLASSES = 6  # most classes that are listed


def headline(rows: Sequence[ScoreRow], summary: dict[str, Any], comparison: Comparison | None = None) -> str:
    """Return the box at the top of a report; all that it shows is defined further down.

    Args:
        rows: of one method.
        summary: of these rows.
        comparison: with another method, or None.
    """
    notes = [("What the prompts gave away", _prompts(rows, summary)), *_doubts(rows, summary)]
    tables = _scores(summary)
    if comparison:
        tables += _differences(comparison)
        notes += _doubts_about(comparison)
    elif few := few_cases(summary["cases"]):
        notes.append(("Few cases", few))
    texts = "".join(f"<p><b>{head}.</b> {escape(text)}</p>" for head, text in notes if text)
    return f'<div class="headline">{tables}{texts}</div>'


def few_cases(cases: int) -> str:
    """Return a sentence if no comparison of this number of cases can be significant, or ''."""
    least = smallest_wilcoxon_p(cases)
    if least <= SIGNIFICANT:
        return ""
    return (
        f"{number_of(cases, 'case')} cannot show a significant difference between methods: the "
        f"smallest p value of the exact Wilcoxon test of n pairs is 2 / 2^n, here {least:.2g}. The t test needs to "
        "assume a normal distribution, which so few cases cannot support."
    )


def _scores(summary: dict[str, Any]) -> str:
    """Return the means of the primary metrics of a few classes, and of all classes together."""
    metrics = [*registry.names_with("primary")]
    if summary["block"] != AUTOMATIC:
        metrics.append("dice_without_prompted_slices")
    metrics = [metric for metric in metrics if metric in summary["macro"]]
    classes: dict[str, Any] = summary["classes"]
    shown = list(classes) if len(classes) <= _CLASSES else sorted(classes, key=lambda name: _dice(classes[name]))
    shown = shown[:_CLASSES]
    body: list[list[Cell]] = []
    if len(summary["macro_classes"]) > 1:
        means = [_estimate(metric, summary["macro"][metric]) for metric in metrics]
        body.append([f"mean of {len(summary['macro_classes'])} classes", *means, ""])
    for name in shown:
        entry = classes[name]
        body.append([name, *(_estimate(metric, entry[metric]) for metric in metrics), entry["dice"]["n"]])
    left_out = len(classes) - len(shown)
    caption = (
        f"Result. {summary['method'] or 'The method'}: means over cases with 95 % t intervals over "
        f"{summary['ci95_covers']}."
        + (f" Tolerance of NSD {tolerances(summary)}." if "nsd" in metrics else "")
        + (f" The {len(shown)} classes with the lowest Dice; {left_out} others are under Scores." if left_out else "")
    )
    return table(caption, ["class", *map(name_of, metrics), "cases"], body)


def _dice(entry: dict[str, Any]) -> float:
    """Return the mean Dice of a class, infinity without one."""
    mean = entry["dice"]["mean"]
    return math.inf if mean is None else float(mean)


def _estimate(metric: str, entry: dict[str, Any]) -> Lines:
    if entry["mean"] is None:
        return Lines("undefined" if "undefined" in entry else "no value", ())
    return Lines(_short(metric, entry["mean"]), (_interval(metric, entry["ci95"]),))


def _short(metric: str, value: float, sign: bool = False) -> Number:
    """Return a number with one digit less than in the tables, as on the console."""
    return Number(value, digits_of(metric) - 1, sign=sign)


def _interval(metric: str, ends: Sequence[float] | None) -> Range | str:
    return Range(*(_short(metric, end) for end in ends)) if ends else "no interval"


def _differences(comparison: Comparison) -> str:
    """Return the differences of the primary metrics of a few classes."""
    metrics = registry.names_with("primary")
    found: dict[str, dict[str, Difference]] = {}
    for entry in comparison["results"]:
        if entry["primary"]:
            found.setdefault(entry["class"], {})[entry["metric"]] = entry
    body: list[list[Cell]] = []
    for name, entries in list(found.items())[:_CLASSES]:
        cases = max(entry["cases"] for entry in entries.values())
        body.append([name, *(_difference(entries[metric]) if metric in entries else "" for metric in metrics), cases])
    left_out = len(found) - len(body)
    caption = (
        f"Difference. {comparison['method']} minus {comparison['other']}, with 95 % intervals, and p of the test over "
        "cases and seeds, corrected (Holm)."
        + (f" The first {len(body)} classes; {left_out} others are under Comparison." if left_out else "")
    )
    return table(caption, ["class", *map(name_of, metrics), "cases"], body)


def _difference(entry: Difference) -> Cell:
    if entry["difference"] is None:
        return "no value"
    p = p_cell(entry["p_crossed_holm"])
    if few_cases(entry["cases"]):
        verdict: tuple[Range | str, ...] = ("too few cases",)
    else:
        verdict = (f"p {p if str(p).startswith('<') else f'= {p}'}",) if p else ()
    difference = _short(entry["metric"], entry["difference"], sign=True)
    return Lines(difference, (_interval(entry["metric"], entry["ci95"]), *verdict))


def _prompts(rows: Sequence[ScoreRow], summary: dict[str, Any]) -> str:
    """Return what the prompts revealed of the references."""
    texts = [_revealed(protocol) for protocol in summary["protocol"]]
    numbers = sorted({int(row["n_prompts"]) for row in rows})
    if numbers[-1] == 0:
        return texts[0]
    count = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    return f"{' '.join(texts)} Prompts per case and class: {count}."


def _revealed(protocol: str) -> str:
    if protocol == "none":
        return "Nothing: the method is scored as automatic, without prompts."
    if protocol.endswith(FROM_PREDICTIONS):
        return f"Nothing of the references: prompts come from the predictions of an automatic method ({protocol})."
    also = "" if protocol == NEAREST_COMPONENT else "; and that the object is present"
    return f"Of each reference, {INFORMATION[protocol]}{also} ({protocol})."


def _doubts(rows: Sequence[ScoreRow], summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what weakens the scores."""
    doubts = []
    if summary["trained_on_these_cases"] == "yes":
        doubts.append(("Trained on these cases", "The scores are no estimate for new cases."))
    if missing := len(summary["missing_predictions"]):
        doubts.append(("Missing", f"The predictions of {missing} of {summary['cases']} cases; they count as empty."))
    empty = sum(row["empty"] == "prediction" and row.get("missing") != "yes" for row in rows)
    if empty:
        doubts.append(("Missed", f"{empty} of {len(rows)} predictions are empty, and have a Dice of 0."))
    return doubts


def _doubts_about(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what weakens a comparison."""
    doubts = [("Few cases", few_cases(comparison["cases"]))]
    if comparison["protocol"] != comparison["protocol_other"]:
        text = f"{comparison['protocol']}, and {comparison['protocol_other']} for {comparison['other']}"
        doubts.append(("Different prompts", f"{text}: the difference may come from the prompts."))
    if left := len(comparison["only_one_has"]):
        doubts.append(("Left out of the comparison", f"{number_of(left, 'case')} that only one of the methods has."))
    return doubts
