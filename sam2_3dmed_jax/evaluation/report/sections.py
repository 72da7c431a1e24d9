"""Sections of a report that are tables. Each caption defines the numbers of its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sam2_3dmed_jax.errors import number_of
from sam2_3dmed_jax.evaluation.comparison import TESTS, Comparison
from sam2_3dmed_jax.evaluation.interactions import CURVES
from sam2_3dmed_jax.evaluation.report.markup import NO_VALUE, Cell, Number, Range, facts, table
from sam2_3dmed_jax.evaluation.report.wording import (
    digits_of,
    interval_cell,
    name_of,
    number,
    p_cell,
    row_cell,
    tolerances,
)
from sam2_3dmed_jax.evaluation.result_files import case_columns
from sam2_3dmed_jax.evaluation.score_row import AUTOMATIC, ScoreRow
from sam2_3dmed_jax.metrics import registry

ROWS = 2000  # most rows of the table of cases; all of them are in cases.csv
# Columns of cases.csv that other tables of the report show.
_SHOWN_ELSEWHERE = (
    *("block", "protocol", "prompt_source", "method", "trained_on_these_cases", "bd", "zoom"),
    *("labels", "definition", "tolerance_mm", "empty_policy"),
)


def what_was_measured(rows: Sequence[ScoreRow], summary: dict[str, Any]) -> str:
    """Return the facts about the method, its prompts and the definitions of metrics."""
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
        ("prompts per case and class", " to ".join(map(str, dict.fromkeys((prompts[0], prompts[-1]))))),
        ("boundary branch (BD) at inference", summary["bd"] or "unknown or none"),
        ("zoom", summary["zoom"] or "unknown or none"),
        ("cases", str(summary["cases"])),
        ("missing predictions", f"{len(missing)}: {', '.join(missing)}" if missing else "0"),
        ("folds", _values(rows, "fold")),
        ("seeds", _values(rows, "seed")),
        ("definition of surfaces", surfaces or "none: only overlap was measured"),
        ("tolerance of NSD", tolerances(summary) if surfaces else NO_VALUE),
        ("where one mask is empty", f"Dice, IoU, NSD 0; distances by the policy '{summary['empty_policy'] or 'none'}'"),
        ("where both are empty", "no score, left out of means and counted"),
    ]
    return facts("What was measured. For research use only.", pairs)


def scores(summary: dict[str, Any]) -> str:
    """Return the scores of each class over its cases, and the mean over classes."""
    header = ["class", "metric", "mean", "95 % interval", "SD", "q1", "median", "q3", "n"]
    # Without prompts, the scores of the slices without a prompt are the scores of all slices.
    hidden = registry.names_requiring("prompts") if summary["block"] == AUTOMATIC else []
    averaged = [name for name in registry.averaged_names() if name not in hidden]
    entries = [entry[m] for entry in summary["classes"].values() for m in registry.averaged_names() if m in entry]
    spreads = [key for key in ("sd_folds", "sd_seeds") if any(key in entry for entry in entries)]
    header[5:5] = [{"sd_folds": "SD of folds", "sd_seeds": "SD of seeds"}[key] for key in spreads]
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        for metric in (metric for metric in averaged if metric in entry):
            if metric not in registry.names_requiring("logits") or entry[metric]["n"]:
                body.append(_score_cells(name, metric, entry, spreads))
    several = len(summary["classes"]) > 1  # of one class, the mean over classes is its own
    for metric in (metric for metric in averaged if several and metric in summary["macro"]):
        macro = summary["macro"][metric]
        empty = [""] * (len(header) - 4)
        body.append(
            ["macro", name_of(metric), number(metric, macro["mean"]), interval_cell(metric, macro["ci95"]), *empty]
        )
    surfaces = f" Surfaces as '{summary['definition']}', tolerance of NSD {tolerances(summary)}; empty masks by policy "
    surfaces += f"'{summary['empty_policy']}'."
    caption = (
        f"Scores. Block {summary['block']}, protocol {', '.join(summary['protocol'])}."
        f"{surfaces if summary['definition'] else ''} Mean, SD (n - 1) and quartiles over the n cases with a value, "
        f"separately for each class, a case being the mean over its seeds. Intervals: t intervals over "
        f"{summary['ci95_covers']}. Macro: plain mean of the classes {', '.join(summary['macro_classes'])}."
    )
    return table(caption, header, body, heads=2)


def _score_cells(name: str, metric: str, entry: dict[str, Any], spreads: Sequence[str]) -> list[Cell]:
    """Return the row of one class and metric."""
    score = entry[metric]
    sds = [Number(score.get(key), digits_of(metric)) for key in ("sd", *spreads)]
    quartiles = [number(metric, score[key]) for key in ("q1", "median", "q3")]
    mean: Cell = "undefined" if "undefined" in score else number(metric, score["mean"])
    registered = registry.metric(metric)
    tolerance = f" at {entry['tolerance_mm']:g} mm" if registered and registered.tolerant else ""
    return [name, name_of(metric) + tolerance, mean, interval_cell(metric, score["ci95"]), *sds, *quartiles, score["n"]]


def counts(summary: dict[str, Any]) -> str:
    """Return the numbers of cases with empty masks and missing files."""
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        empty = entry["empty"]
        both = [entry["cases"], empty["prediction"], empty["reference"], empty["both"], entry["missing"]]
        body.append([name, entry["labels"], *both])
    header = ("class", "labels", "cases", "prediction empty", "reference empty", "both empty", "files missing")
    caption = (
        "Cases of each kind. An empty prediction is a miss, an empty reference makes a prediction false; a case with "
        "both empty has no score. A missing file counts as an empty prediction, and is among those. A case with "
        "several seeds counts once under cases, and once per seed elsewhere."
    )
    return table(caption, header, body)


def interactions(summary: dict[str, Any]) -> str:
    """Return the scores after each interaction, and the areas and clicks of each class; '' without interactions."""
    found = {name: entry["interactive"] for name, entry in summary["classes"].items() if "interactive" in entry}
    if not found:
        return ""
    first = next(iter(found.values()))
    metrics = [metric for metric in CURVES if metric in first["curve"][0]]
    body: list[list[Cell]] = []
    for name, entry in found.items():
        for one, seconds in zip(entry["curve"], entry["seconds_per_interaction"], strict=True):
            means: list[Cell] = []
            for metric in metrics:
                means += [number(metric, one[metric]["mean"]), interval_cell(metric, one[metric]["ci95"])]
            body.append([name, one["interaction"], *means, Number(seconds["mean"], 2), one["dice"]["n"]])
    columns = [title for metric in metrics for title in (name_of(metric), "95 % interval")]
    words = summary["definitions"]
    rules = ", ".join(
        f"{what} {first[key] or 'not known'}"
        for what, key in (("initial prompt", "initial"), ("click rule", "click_rule"), ("refinement", "refinement"))
    )
    caption = (
        f"Scores after each interaction ({rules}). {words['interaction']}. Means over the cases that hold the object; "
        f"intervals: t intervals over {summary['ci95_covers']}. Seconds: {words['seconds_per_interaction']}."
    )
    curve = table(caption, ("class", "clicks", *columns, "seconds", "n"), body, heads=2)
    return curve + _areas_and_clicks(found, words)


def _areas_and_clicks(found: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Return the area under each curve and the number of clicks to each Dice, of each class."""
    body: list[list[Cell]] = []
    for name, entry in found.items():
        for metric, area in entry["auc"].items():
            ends = interval_cell(metric, area["ci95"])
            body.append([name, f"area, {name_of(metric)}", number(metric, area["mean"]), ends, "", "", area["n"]])
        for dice, clicks in entry["clicks_to"].items():
            ends = Range(*(Number(end, 2) for end in clicks["ci95"])) if clicks["ci95"] else ""
            mean, median = (Number(clicks[key], 2) for key in ("mean", "median"))
            body.append([name, f"clicks to Dice {dice}", mean, ends, median, clicks["failures"], clicks["n"]])
    caption = f"Areas and clicks. Area: {words['auc']}. Clicks: {words['clicks_to']}."
    return table(caption, ("class", "what", "mean", "95 % interval", "median", "failures", "n"), body, heads=2)


def by_distance(summary: dict[str, Any]) -> str:
    """Return the Dice of each class by distance from the prompted slices; '' without prompts."""
    entries = {name: entry["by_distance"] for name, entry in summary["classes"].items() if "by_distance" in entry}
    if not entries:
        return ""
    body: list[list[Cell]] = []
    for name, bins in entries.items():
        body.append([name, "mean Dice", *(Number(one["dice"], digits_of("dice")) for one in bins)])
        body.append([name, "cases", *(one["cases"] for one in bins)])
    header = ["class", "what", *map(_distance, next(iter(entries.values())))]
    caption = f"Dice by distance from the nearest prompted slice. {summary['definitions']['by_distance']}."
    return table(caption, header, body, heads=2)


def _distance(one: Mapping[str, Any]) -> str:
    """Return the name of a bin of distance, whose upper edge belongs to it."""
    low, high = one["from_mm"], one["to_mm"]
    if high is None:
        return f"over {low:g} mm"
    return f"up to {high:g} mm" if high > low else "prompted slices"


def lesions(summary: dict[str, Any]) -> str:
    """Return the tumours by diameter; '' if no tumour was scored."""
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        counted = entry.get("lesions")
        if not counted:
            continue
        per_case = Number(counted["false_positives_per_case"], 2)
        recall = Number(counted["recall"], 4)
        body.append([name, "all", int(counted["lesions"]), int(counted["found"]), recall, "", "", "", per_case])
        for part in counted["by_diameter"]:
            below = part["below_mm"]
            size = f"{part['from_mm']:g} mm and more" if below is None else f"{part['from_mm']:g} to {below:g} mm"
            rates = [Number(part[key], 4) for key in ("recall", "covered")]
            last = [part["cases"], Number(part["dice"], 4), ""]
            body.append([name, size, int(part["lesions"]), int(part["found"]), *rates, *last])
    if not body:
        return ""
    caption = (
        "Lesions. Components (26 neighbours) of the reference; found: touched by the prediction; covered: mean share "
        "of their voxels; diameter: of the sphere of equal volume. Cases and Dice: of cases whose largest lesion is of "
        "this size. A false positive is a component that touches no lesion."
    )
    header = ("class", "diameter", "lesions", "found", "recall", "covered", "cases", "Dice", "false per case")
    return table(caption, header, body, heads=2)


def comparison_table(comparison: Comparison) -> str:
    """Return the paired differences of two methods on the same cases."""
    body: list[list[Cell]] = []
    for entry in comparison["results"]:
        metric = entry["metric"]
        means = [number(metric, mean) for mean in (entry["mean"], entry["mean_other"])]
        difference = Number(entry["difference"], digits_of(metric), sign=True)
        interval = interval_cell(metric, entry["ci95"])
        # Comparisons of earlier versions have no test over cases and seeds.
        found: Mapping[str, Any] = entry
        tests = [p_cell(found.get(key)) for _, *keys in TESTS for key in keys]
        seeds = [found.get(key, "") for key in ("covers", "seed_pairing")]
        kind = "primary" if entry["primary"] else "exploratory"
        heads: list[Cell] = [entry["class"], name_of(metric), entry["cases"]]
        body.append([*heads, *means, difference, interval, *tests, kind, entry["left_out"], *seeds])
    only = comparison["only_one_has"]
    caption = (
        f"Comparison. {comparison['method']} against {comparison['other']} ({comparison['block']}; protocols "
        f"{comparison['protocol']} and {comparison['protocol_other']}; trained on these cases: "
        f"{comparison['trained_on_these_cases']} and {comparison['trained_on_these_cases_other']}) on the "
        f"{number_of(comparison['cases'], 'case')} that both have; {number_of(len(only), 'case')} that only one has. "
        f"{_seeds(comparison)}The columns are defined under Definitions."
    )
    columns = [title for name, *_ in TESTS for title in (f"p ({name})", f"p ({name}, Holm)")]
    header = ("class", "metric", "cases", "mean", "mean of the other", "difference", "95 % interval", *columns)
    return table(caption, (*header, "kind", "left out", "covers", "seeds"), body, heads=2)


def _seeds(comparison: Mapping[str, Any]) -> str:
    """Return the numbers of seeds of both methods; '' for comparisons of earlier versions."""
    if "seeds" not in comparison:
        return ""
    return f"Numbers of seeds: {' and '.join(str(len(comparison[key])) for key in ('seeds', 'seeds_other'))}. "


def volumes(summary: dict[str, Any]) -> str:
    """Return bias and limits of agreement, which the Bland-Altman plots draw."""
    body: list[list[Cell]] = []
    for name, entry in summary["classes"].items():
        error = entry["volume_error_ml"]
        low, high = limits(error)
        sides = [Number(value, 2, sign=True) for value in (error["mean"], low, high)]
        body.append([name, *sides, error["n"]])
    caption = (
        "Agreement of volumes (Bland and Altman). Bias: mean of prediction minus reference in mL; limits of agreement: "
        "bias - and + 1.96 SD (n - 1) over cases, a case being the mean over its seeds; cases with empty masks count."
    )
    return table(caption, ("class", "bias (mL)", "lower limit (mL)", "upper limit (mL)", "n"), body)


def limits(error: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the limits of agreement (Bland and Altman 1986) from mean and SD; None if there are too few cases."""
    if error["mean"] is None or error["sd"] is None:
        return None, None
    return error["mean"] - 1.96 * error["sd"], error["mean"] + 1.96 * error["sd"]


def cases(rows: Sequence[ScoreRow]) -> str:
    """Return the rows of `cases.csv`, without empty columns and those that other tables of the report show."""
    columns = [column for column in case_columns() if column not in _SHOWN_ELSEWHERE and has_values(rows, column)]
    shown = sorted(rows, key=_badness)[:ROWS] if len(rows) > ROWS else rows
    left = "" if len(rows) <= ROWS else f" The {ROWS} rows with the lowest Dice of {len(rows)}."
    caption = f"Cases. Each row is one of cases.csv next to this page, which has all digits and columns.{left}"
    return table(caption, [name_of(c) for c in columns], [[row_cell(row, c) for c in columns] for row in shown], 2)


def definitions(summary: dict[str, Any], comparison: Comparison | None = None) -> str:
    """Return all definitions of `summary.json`, and of `comparison.json`."""
    own = facts("Definitions. As in summary.json.", list(summary["definitions"].items()))
    if not comparison:
        return own
    return own + facts("Definitions of the comparison. As in comparison.json.", list(comparison["definitions"].items()))


def has_values(rows: Sequence[ScoreRow], column: str) -> bool:
    """Return whether a column has a value in any row."""
    values = (row.get(column, "") for row in rows)
    return any(not math.isnan(value) if isinstance(value, float) else str(value) != "" for value in values)


def _values(rows: Sequence[ScoreRow], column: str) -> str:
    return ", ".join(sorted({str(row.get(column, "")) for row in rows} - {""})) or "unknown"


def _badness(row: ScoreRow) -> float:
    return math.inf if math.isnan(row["dice"]) else row["dice"]
