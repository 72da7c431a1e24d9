"""Report of a sweep: its spec, robustness curves, and the means of every setting, as in `summary.csv`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from typing import Any

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.errors import number_of
from sam2_3dmed_jax.evaluation.report import plots
from sam2_3dmed_jax.evaluation.report.frame import html_page
from sam2_3dmed_jax.evaluation.report.markup import Cell, Lines, Number, Range, facts, figure, table
from sam2_3dmed_jax.evaluation.report.wording import name_of, number
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.sweep.factors import FACTORS, Setting, base_of, meaningful
from sam2_3dmed_jax.evaluation.sweep.sweep_tables import MACRO, NO_SWAP, WHY, as_text
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.prompts.perturbation import OTHER, OWN

ROWS = 2000  # most rows of the table of settings; all of them are in summary.csv
_CURVES = {
    "misplacement_mm": "misplacement (mm)",
    "noise_mm": "noise, SD (mm)",
    "prompted_slices": "prompted slices",
    "corrections": "corrective clicks",
    "threshold": "logit threshold",
}


def sweep_page(spec: SweepSpec, summary: Sequence[ScoreRow], record: dict[str, Any]) -> str:
    """Return the page of a sweep.

    Args:
        spec: of the sweep.
        summary: `sweep_tables.summary_rows`.
        record: `sweep_tables.record`.
    """
    cases = {case for entry in record["checkpoints"] for case in entry["cases"]}
    sections = [
        ("Result", _headline(spec, summary)),
        ("Robustness", _robustness(spec, summary)),
        ("Prompt of another object", _click_swap(spec, summary)),
        ("Settings", _settings(summary)),
        ("What was swept", _spec_table(spec, record, len(cases))),
        ("Definitions", facts("Definitions. As in sweep.json.", list(record["definitions"].items()))),
    ]
    size = f"{number_of(record['settings'], 'setting')} on {number_of(len(cases), 'case')}"
    return html_page(f"Sweep (exploratory): {size}", sections, WHY)


def curve_points(
    spec: SweepSpec, summary: Sequence[ScoreRow], factor: str, metric: str, class_: str
) -> list[dict[str, Any]]:
    """Return the points of a robustness curve: one factor varies, one line per model, prompt and BD, the rest at base.

    Returns:
        Points for `plots.curves`, with the means and intervals of the summary.
    """
    base = base_of(spec)
    several = len({row["model"] for row in summary}) > 1
    branches = {row["bd"] for row in summary}
    trained = {row["trained_on_these_cases"] for row in summary}
    points = []
    for row in summary:
        here = _setting(row)
        free = {"prompt": here.prompt, "bd": here.bd, factor: getattr(here, factor)}
        if row["class"] != class_ or here != meaningful(dataclasses.replace(base, **free)):
            continue
        name = here.prompt + (f", BD {here.bd}" if len(branches) > 1 else "")
        name += f", trained on these: {row['trained_on_these_cases']}" if len(trained) > 1 else ""
        ends = row.get(f"{metric}_ci95_low", ""), row.get(f"{metric}_ci95_high", "")
        mean = row.get(f"{metric}_mean", "")
        points.append(
            {
                "x": getattr(here, factor),
                "series": f"{name}, {row['model']}" if several else name,
                "mean": None if mean == "" else mean,
                "ci95": None if "" in ends else ends,
            }
        )
    return points


def _headline(spec: SweepSpec, summary: Sequence[ScoreRow]) -> str:
    """Return the box at the top: each model and prompt with all other factors at their base, and at its worst.

    It is empty without scores.
    """
    if not summary:
        return ""
    classes = list(dict.fromkeys(row["class"] for row in summary))
    class_ = MACRO if len(classes) > 2 else classes[0]
    base, metrics = base_of(spec), registry.names_with("primary")
    metrics = [metric for metric in metrics if any(row.get(f"{metric}_mean", "") != "" for row in summary)]
    lines_differ_in = ("model", "prompt", "bd", "trained_on_these_cases")
    named = [name for name in lines_differ_in if name == "prompt" or len({row[name] for row in summary}) > 1]
    lines: dict[tuple[Any, ...], list[ScoreRow]] = {}
    for row in summary:
        if row["class"] == class_ and row["prompt_of"] == OWN and row.get("dice_mean", "") != "":
            lines.setdefault(tuple(row[name] for name in named), []).append(row)
    body: list[list[Cell]] = []
    for line, rows in lines.items():
        at_base = meaningful(dataclasses.replace(base, prompt=rows[0]["prompt"], bd=rows[0]["bd"]))
        start = next((row for row in rows if _setting(row) == at_base), rows[0])
        worst = min(rows, key=lambda row: float(row["dice_mean"]))
        changed = [name for name in FACTORS if worst[name] != start[name]]
        where = ", ".join(f"{_CURVES.get(name, name_of(name))} {_factor(worst[name])}" for name in changed)
        scores = [_lines(start, metric) for metric in metrics]
        body.append([*map(_factor, line), *scores, _lines(worst, "dice"), where or "at the base"])
    caption = (
        f"Result. {'Mean over classes' if class_ == MACRO else class_}: means over cases with 95 % t intervals, all "
        "factors at their base, and the setting with the lowest Dice."
    )
    header = [*map(name_of, named), *map(name_of, metrics), "lowest Dice", "where"]
    return f'<div class="headline">{table(caption, header, body, heads=len(named))}</div>'


def _setting(row: ScoreRow) -> Setting:
    return Setting(**{name: row[name] for name in FACTORS})


def _lines(row: ScoreRow, metric: str) -> Cell:
    mean, low, high = (row.get(f"{metric}_{what}", "") for what in ("mean", "ci95_low", "ci95_high"))
    return "undefined" if mean == "" else Lines(_exact(metric, mean), (_range(metric, low, high) or "no interval",))


def _spec_table(spec: SweepSpec, record: dict[str, Any], cases: int) -> str:
    trained = sorted({entry["trained_on_these_cases"] for entry in record["checkpoints"]})
    pairs = [("kind", WHY), ("cells", str(record["cells"])), ("settings", str(record["settings"]))]
    pairs += [("cases", str(cases)), ("checkpoints", ", ".join(e["checkpoint"] for e in record["checkpoints"]))]
    pairs += [("trained on these cases", ", ".join(trained)), ("data", spec.data), ("design", spec.design)]
    pairs += [("combined with all other factors", ", ".join(spec.crossed))] if spec.crossed else []
    pairs += [(name, ", ".join(map(str, getattr(spec, name)))) for name in FACTORS]
    pairs += [("seed of prompts", str(spec.prompt_seed)), ("definition of surfaces", spec.definition)]
    pairs += [("where one mask is empty", f"Dice, IoU, NSD 0; distances by the policy '{spec.empty}'")]
    return facts("What was swept. The first value of a factor is its base. For research use only.", pairs)


def _robustness(spec: SweepSpec, summary: Sequence[ScoreRow]) -> str:
    classes = list(dict.fromkeys(row["class"] for row in summary))
    if len(classes) == 2:  # one class, and the mean over it
        classes.remove(MACRO)
    parts = []
    for class_ in classes:
        shown = ""
        for factor, axis in _CURVES.items():
            if len(getattr(spec, factor)) < 2:
                continue
            for metric in registry.names_with("primary"):
                points = curve_points(spec, summary, factor, metric, class_)
                if any(point["mean"] is not None for point in points):
                    shown += _curve(points, axis, metric, class_, summary)
        if shown:
            parts.append(f'<h3>{escape(class_)}</h3><div class="plots">{shown}</div>')
    return "".join(parts) or "<p>No numeric factor has several values.</p>"


def _curve(points: list[dict[str, Any]], axis: str, metric: str, class_: str, summary: Sequence[ScoreRow]) -> str:
    name = name_of(metric)
    tolerance = sorted({row["tolerance_mm"] for row in summary if row["class"] == class_ and "tolerance_mm" in row})
    registered = registry.metric(metric)
    if registered and registered.tolerant and tolerance:
        name += f" at {tolerance[0]:g} mm"
    words = "; ".join(
        f"{point['series']} at {point['x']:g}: {number(metric, point['mean'])}"
        for point in sorted(points, key=lambda point: (str(point["series"]), point["x"]))
    )
    caption = (
        f"{class_}: mean {name} against {axis}, all other factors at their base. Bands: 95 % t intervals "
        "over cases, and over seeds if a model has several."
    )
    return figure("svg+xml", plots.curves(points, axis, f"mean {name}"), f"Curves of {name}. {words}.", caption)


def _click_swap(spec: SweepSpec, summary: Sequence[ScoreRow]) -> str:
    """Return the scores with own prompts and with prompts of other objects; '' if the latter are not swept."""
    if OTHER not in spec.prompt_of:
        return ""
    swapped = [row for row in summary if row["prompt_of"] == OTHER and row["class"] != MACRO]
    if not swapped:
        return f"<p>{escape(NO_SWAP)}</p>"
    keys = ("model", *(name for name in FACTORS if name != "prompt_of"), "class")
    own = {tuple(row[key] for key in keys): row for row in summary if row["prompt_of"] == OWN}
    varied = [name for name in keys[:-1] if name == "prompt" or len({row[name] for row in swapped}) > 1]
    shown = ["class", *varied]
    body: list[list[Cell]] = []
    for row in swapped:
        # A sweep of prompts of other objects alone has no own ones.
        scores = [own.get(tuple(row[key] for key in keys), {}), row]
        means: list[Cell] = [_mean(one, "dice") for one in scores]
        body.append([*(_factor(as_text(row)[name]) for name in shown), *means, *(one.get("n", "") for one in scores)])
    caption = (
        "Prompt of another object. Each object is prompted with the prompt of the next object of its case and scored "
        "against its own reference. If the model follows its prompt, the Dice falls to about 0; if it ignores the "
        "prompt, the Dice stays as it is with the own prompt. n: cases. A case without another object has no score "
        "with its prompt."
    )
    header = (*(name_of(name) for name in shown), "Dice, own prompt", "Dice, prompt of another", "n", "n, another")
    return table(caption, header, body, heads=2)


def _mean(row: ScoreRow, metric: str) -> Cell:
    if not row:
        return ""
    mean = row.get(f"{metric}_mean", "")
    return "undefined" if mean == "" else _exact(metric, mean)


def _settings(summary: Sequence[ScoreRow]) -> str:
    shown = (*registry.names_with("headline"), "volume_error_ml")
    metrics = [metric for metric in shown if any(row.get(f"{metric}_mean", "") != "" for row in summary)]
    named = [name for name in ("model", *FACTORS) if name == "prompt" or len({row[name] for row in summary}) > 1]
    header = ["class", *named, "n", *(part for m in metrics for part in (name_of(m), "95 % interval"))]
    body: list[list[Cell]] = []
    for row in map(as_text, summary[:ROWS]):
        scored: list[Cell] = []
        for metric in metrics:
            mean, low, high = (row.get(f"{metric}_{what}", "") for what in ("mean", "ci95_low", "ci95_high"))
            scored += ["undefined" if mean == "" else _exact(metric, mean), _range(metric, low, high)]
        body.append([row["class"], *(_factor(row[name]) for name in named), row.get("n", ""), *scored])
    left = "" if len(summary) <= ROWS else f" The first {ROWS} of {len(summary)} rows."
    caption = (
        "Settings. Mean over cases of each class (a case being the mean over its seeds), and over classes (macro). "
        f"Factors with one value are listed above. Each row is one of summary.csv next to this page.{left}"
    )
    return f"<details open><summary>{len(summary)} rows</summary>{table(caption, header, body)}</details>"


def _exact(metric: str, value: float) -> Number:
    return number(metric, value, f"{value:.6g}")


def _range(metric: str, low: float | str, high: float | str) -> Range | str:
    if isinstance(low, str) or isinstance(high, str):
        return ""
    return Range(_exact(metric, low), _exact(metric, high))


def _factor(value: float | int | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
