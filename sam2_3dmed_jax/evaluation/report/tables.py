"""The tables of a report. Each caption says what its numbers are: no number stands without its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sam2_3dmed_jax.evaluation.report.markup import NONE, Cell, Number, Range, facts, table
from sam2_3dmed_jax.evaluation.report.wording import is_share, name_of, number, row_cell, tolerances
from sam2_3dmed_jax.evaluation.results import COLUMNS
from sam2_3dmed_jax.evaluation.scores import UNPROMPTED
from sam2_3dmed_jax.evaluation.summary import AUTOMATIC, AVERAGED, Row
from sam2_3dmed_jax.metrics.reliability import COLUMNS as BAND
from sam2_3dmed_jax.metrics.statistics import DRAWS

ROWS = 2000  # of cases, at most: the rest stands in cases.csv
_FIXED = ("block", "protocol", "prompt_source", "method", "trained_on_these_cases", "bd", "labels", "definition")


def what_was_measured(rows: Sequence[Row], summary: dict[str, Any]) -> str:
    """Whose results these are, what the method was told, and how masks were measured."""
    surfaces = summary["definition"]
    protocol = summary["protocol"][0]
    prompts = sorted({int(row["n_prompts"]) for row in rows})
    missing = summary["missing_predictions"]
    pairs = [
        ("method", summary["method"] or "not named"),
        ("trained on these cases", summary["trained_on_these_cases"] or "unknown"),
        ("block", f"{summary['block']} (automatic and reference-prompted methods are not ranked against each other)"),
        ("protocol", protocol if protocol == "none" else f"{protocol}: {summary['protocol_definition']}"),
        ("prompt source", ", ".join(sorted({str(row["prompt_source"]) for row in rows}))),
        ("prompts a case and class", " to ".join(map(str, dict.fromkeys((prompts[0], prompts[-1]))))),
        ("boundary branch (BD) at inference", summary["bd"] or "not known, or none"),
        ("cases", str(summary["cases"])),
        ("predictions that are missing", f"{len(missing)}: {', '.join(missing)}" if missing else "0"),
        ("folds", _values(rows, "fold")),
        ("seeds", _values(rows, "seed")),
        ("definition of surfaces", surfaces or "none: overlap alone was measured"),
        ("tolerance of NSD", tolerances(summary) if surfaces else NONE),
        ("where one mask is empty", f"Dice, IoU, NSD 0; distances by the policy '{summary['empty_policy'] or 'none'}'"),
        ("where both are empty", "no score, left out of means and counted"),
    ]
    return facts("What was measured. For research use only.", pairs)


def scores(summary: dict[str, Any]) -> str:
    """Each class over its cases, and the mean over classes."""
    header = ["class", "metric", "mean", "95 % interval", "SD", "q1", "median", "q3", "n"]
    # Without prompts there are no prompted slices: these scores are the others again.
    averaged = [m for m in AVERAGED if summary["block"] != AUTOMATIC or m not in UNPROMPTED]
    entries = [entry[m] for entry in summary["classes"].values() for m in AVERAGED if m in entry]
    spreads = [key for key in ("sd_folds", "sd_seeds") if any(key in entry for entry in entries)]
    header[5:5] = [{"sd_folds": "SD of folds", "sd_seeds": "SD of seeds"}[key] for key in spreads]
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        for metric in (metric for metric in averaged if metric in entry):
            found = entry[metric]
            if metric in BAND and not found["n"]:
                continue
            sds = [Number(found.get(key), 4 if is_share(metric) else 2) for key in ("sd", *spreads)]
            quartiles = [number(metric, found[key]) for key in ("q1", "median", "q3")]
            mean: Cell = "undefined" if "undefined" in found else number(metric, found["mean"])
            named = f"NSD at {entry['tolerance_mm']:g} mm" if metric == "nsd" else name_of(metric)
            body.append([name, named, mean, _interval(metric, found["ci95"]), *sds, *quartiles, found["n"]])
    for metric, found in ((metric, summary["macro"][metric]) for metric in averaged if metric in summary["macro"]):
        empty = [""] * (len(header) - 4)
        body.append(["macro", name_of(metric), number(metric, found["mean"]), _interval(metric, found["ci95"]), *empty])
    surfaces = f" Surfaces as '{summary['definition']}', tolerance of NSD {tolerances(summary)}; empty masks by policy "
    surfaces += f"'{summary['empty_policy']}'." if summary["definition"] else ""
    caption = (
        f"Scores. Block {summary['block']}, protocol {', '.join(summary['protocol'])}."
        f"{surfaces if summary['definition'] else ''} Mean, SD (n - 1) and quartiles over the n cases with a value, a "
        f"class at a time, a case being the mean over its seeds. Intervals: {DRAWS} bootstrap samples over cases. "
        f"Macro: plain mean of the classes {', '.join(summary['macro_classes'])}."
    )
    return table(caption, header, body, heads=2)


def counts(summary: dict[str, Any]) -> str:
    """How many cases of each kind there were."""
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        empty = entry["empty"]
        both = [entry["cases"], empty["prediction"], empty["reference"], empty["both"], entry["missing"]]
        body.append([name, entry["labels"], *both])
    header = ("class", "labels", "cases", "prediction empty", "reference empty", "both empty", "files missing")
    caption = (
        "Cases of each kind. An empty prediction is a miss, an empty reference makes a prediction false; where "
        "both are empty there is no score. A missing file counts as an empty prediction, and is among those. A case "
        "with several seeds counts once under cases, and once a seed elsewhere."
    )
    return table(caption, header, body)


def lesions(summary: dict[str, Any]) -> str:
    """Tumours by their diameter; '' if there were none to count."""
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        found = entry.get("lesions")
        if not found:
            continue
        per_case = Number(found["false_positives_per_case"], 2)
        recall = Number(found["recall"], 4)
        body.append([name, "all", int(found["lesions"]), int(found["found"]), recall, "", "", "", per_case])
        for part in found["by_diameter"]:
            below = part["below_mm"]
            size = f"{part['from_mm']:g} mm and more" if below is None else f"{part['from_mm']:g} to {below:g} mm"
            rates = [Number(part[key], 4) for key in ("recall", "covered")]
            last = [part["cases"], Number(part["dice"], 4), ""]
            body.append([name, size, int(part["lesions"]), int(part["found"]), *rates, *last])
    if not body:
        return ""
    caption = (
        "Lesions. Components (26 neighbours) of the reference; found: touched by the prediction; covered: mean share "
        "of their voxels; diameter: of the sphere of equal volume. Cases and Dice are those whose largest lesion is of "
        "this size. A false positive is a component that touches no lesion."
    )
    header = ("class", "diameter", "lesions", "found", "recall", "covered", "cases", "Dice", "false a case")
    return table(caption, header, body, heads=2)


def comparison(found: dict[str, Any]) -> str:
    """Two methods on the same cases."""
    header = ("class", "metric", "cases", "left out", "mean", "mean of the other", "difference", "95 % interval")
    body: list[list[Cell]] = []
    for entry in found["results"]:
        metric = entry["metric"]
        means = [number(metric, entry[key]) for key in ("mean", "mean_other")]
        difference = Number(entry["difference"], 4 if is_share(metric) else 2, sign=True)
        interval = _interval(metric, entry["ci95"])
        tests = [_p(entry["p_wilcoxon"]), _p(entry["p_holm"]), "primary" if entry["primary"] else "exploratory"]
        named = [entry["class"], name_of(metric), entry["cases"], entry["left_out"]]
        body.append([*named, *means, difference, interval, *tests])
    only = found["only_one_has"]
    words = " ".join(f"{name.replace('_', ' ')}: {text}." for name, text in found["definitions"].items())
    caption = (
        f"Comparison. {found['method']} against {found['other']} ({found['block']}; protocols {found['protocol']} and "
        f"{found['protocol_other']}; trained on these cases: {found['trained_on_these_cases']} and "
        f"{found['trained_on_these_cases_other']}) on the {found['cases']} cases that both have; {len(only)} cases "
        f"only one has. {words}"
    )
    return table(caption, (*header, "p (Wilcoxon)", "p (Holm)", "kind"), body, heads=2)


def volumes(summary: dict[str, Any]) -> str:
    """Bias and limits of agreement, which the Bland-Altman plots draw."""
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        found = entry["volume_error_ml"]
        low, high = limits(found)
        sides = [Number(value, 2, sign=True) for value in (found["mean"], low, high)]
        body.append([name, *sides, found["n"]])
    caption = (
        "Agreement of volumes (Bland and Altman). Bias: mean of prediction minus reference in mL; limits of agreement: "
        "bias - and + 1.96 SD (n - 1) over cases, a case being the mean over its seeds; cases with empty masks count."
    )
    return table(caption, ("class", "bias (mL)", "lower limit (mL)", "upper limit (mL)", "n"), body)


def limits(found: dict[str, Any]) -> tuple[float | None, float | None]:
    """Limits of agreement (Bland and Altman 1986) from mean and SD; None where there are too few cases."""
    if found["mean"] is None or found["sd"] is None:
        return None, None
    return found["mean"] - 1.96 * found["sd"], found["mean"] + 1.96 * found["sd"]


def cases(rows: Sequence[Row]) -> str:
    """A row a case and class, as `cases.csv` has it, without columns that are alike or empty throughout."""
    columns = [
        column for column in COLUMNS if column not in (*_FIXED, "tolerance_mm", "empty_policy") and told(rows, column)
    ]
    shown = sorted(rows, key=_badness)[:ROWS] if len(rows) > ROWS else rows
    left = "" if len(rows) <= ROWS else f" The {ROWS} rows with the lowest Dice of {len(rows)}."
    caption = f"Cases. Each row is one of cases.csv beside this page, which has all digits and columns.{left}"
    return table(caption, [name_of(c) for c in columns], [[row_cell(row, c) for c in columns] for row in shown], 2)


def definitions(summary: dict[str, Any]) -> str:
    """Every definition that `summary.json` has."""
    return facts("Definitions. As summary.json has them.", list(summary["definitions"].items()))


def told(rows: Sequence[Row], column: str) -> bool:
    """Whether a column has a value in any row."""
    values = (row.get(column, "") for row in rows)
    return any(not math.isnan(value) if isinstance(value, float) else str(value) != "" for value in values)


def _values(rows: Sequence[Row], column: str) -> str:
    return ", ".join(sorted({str(row.get(column, "")) for row in rows} - {""})) or "not told"


def _interval(metric: str, ends: Sequence[float] | None) -> Range | str:
    return Range(number(metric, ends[0]), number(metric, ends[1])) if ends else ""


def _p(value: float | None) -> Number | str:
    return "" if value is None else Number(value, 4, least=1e-4)


def _badness(row: Row) -> float:
    return math.inf if math.isnan(row["dice"]) else row["dice"]
