"""Page of an evaluation: one file that loads nothing, runs no scripts, and has the numbers of the files next to it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from sam2_3dmed_jax.errors import number_of
from sam2_3dmed_jax.evaluation.class_means import metric_entry, values_of
from sam2_3dmed_jax.evaluation.comparison import Comparison
from sam2_3dmed_jax.evaluation.interactions import CURVES
from sam2_3dmed_jax.evaluation.report import plots, sections
from sam2_3dmed_jax.evaluation.report.cost_tables import cost_tables
from sam2_3dmed_jax.evaluation.report.frame import html_page
from sam2_3dmed_jax.evaluation.report.headline import headline
from sam2_3dmed_jax.evaluation.report.markup import figure, table
from sam2_3dmed_jax.evaluation.report.wording import name_of, row_cell, tolerances
from sam2_3dmed_jax.evaluation.report.worst_cases import PICTURE, worst
from sam2_3dmed_jax.evaluation.score_row import AUTOMATIC, ScoreRow
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.reliability import BINS
from sam2_3dmed_jax.metrics.statistics import over_seeds

_AGREEMENT_PLOTS = 12  # at most


def report_page(
    rows: Sequence[ScoreRow],
    summary: dict[str, Any],
    comparison: Comparison | None = None,
    others: Sequence[ScoreRow] = (),
) -> str:
    """Return the page of an evaluation, or of several that are summarised together.

    The result comes first, then what it hides, and bookkeeping last.

    Args:
        rows: with the columns of `cases.csv`; pictures of rows that have one are shown.
        summary: of these rows.
        comparison: with another method, or None.
        others: rows of the other method.
    """
    method = summary["method"] or "a method"
    content = [
        ("Result", headline(rows, summary, comparison)),
        ("Worst cases", _worst_cases(rows, summary)),
        ("Comparison", sections.comparison_table(comparison) if comparison else ""),
        ("Corrective clicks", _interactions(summary)),
        ("Spread over cases", _box_plots(rows, summary, comparison, others)),
        ("Scores", sections.scores(summary) + sections.counts(summary) + sections.lesions(summary)),
        ("Dice by distance from the prompt", sections.by_distance(summary)),
        ("Dice against organ size", _size_plot(rows, summary)),
        ("Agreement of volumes", sections.volumes(summary) + _agreement_plots(rows, summary)),
        ("Reliability at the boundary", _reliability_plot(summary)),
        ("All cases", f"<details><summary>{len(rows)} rows</summary>{sections.cases(rows)}</details>"),
        ("What was measured", sections.what_was_measured(rows, summary)),
        ("Cost", cost_tables(summary)),
        ("Definitions", sections.definitions(summary, comparison)),
    ]
    return html_page(f"Evaluation of {method}: {number_of(summary['cases'], 'case')}", content)


def _values(rows: Sequence[ScoreRow], summary: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return the values of a metric, `[C]` of each class: cases, averaged over seeds."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    return {name: over_seeds(values_of(rows, name, metric, cases)) for name in summary["classes"]}


def _box_plots(
    rows: Sequence[ScoreRow], summary: dict[str, Any], comparison: Comparison | None, others: Sequence[ScoreRow]
) -> str:
    """Return a box plot of each metric: one box per class, or two in a comparison."""
    hidden = registry.names_requiring("prompts") if summary["block"] == AUTOMATIC else []
    figures = []
    for metric in registry.METRICS:
        name = metric.name
        if not metric.plotted or name not in next(iter(summary["classes"].values())) or name in hidden:
            continue
        if comparison and others:
            boxes = _paired_boxes(name, rows, others, comparison)
        else:
            values = _values(rows, summary, name)
            boxes = [plots.Box(class_, "", values[class_], entry[name]) for class_, entry in summary["classes"].items()]
        words = [
            f"{', '.join(filter(None, (box.name, box.method)))}: median {_text(name, box.summary['median'])}, mean "
            f"{_text(name, box.summary['mean'])}, n = {box.summary['n']}"
            for box in boxes
        ]
        caption = (
            f"{metric.title}. Box: quartiles and median; whiskers: last case within 1.5 times their distance; "
            "grey: cases (means over seeds); diamond: mean, with its 95 % interval as the black line below."
        )
        caption += " Cases that both methods have." if comparison else ""
        caption += f" Tolerance {tolerances(summary)}." if metric.tolerant else ""
        if plots.is_logarithmic(name, boxes):
            caption += " The axis is linear up to 10, and logarithmic beyond."
        if metric.requires == "surfaces" and metric.unit == "mm":
            caption += f" Surfaces as '{summary['definition']}'; one mask empty: '{summary['empty_policy']}'."
        alt = f"Box plots of {metric.title} by class. {'; '.join(words)}."
        figures.append(figure("svg+xml", plots.boxes(name, boxes), alt, caption))
    return f'<div class="plots">{"".join(figures)}</div>'


def _paired_boxes(
    metric: str, rows: Sequence[ScoreRow], others: Sequence[ScoreRow], comparison: Comparison
) -> list[plots.Box]:
    """Return a box per class and method, over the cases and classes that both methods have."""
    names = (comparison["method"], comparison["other"])
    if names[0] == names[1]:
        names = (names[0], f"{names[1]} (other)")
    cases = sorted({row["case"] for row in rows} & {row["case"] for row in others})
    boxes = []
    for class_ in dict.fromkeys(entry["class"] for entry in comparison["results"]):
        for method, side in zip(names, (rows, others), strict=True):
            own = [row for row in side if row["class"] == class_ and row["case"] in cases]
            values = values_of(own, class_, metric, cases)
            boxes.append(plots.Box(class_, method, over_seeds(values), metric_entry(own, metric, values)))
    return boxes


def _size_plot(rows: Sequence[ScoreRow], summary: dict[str, Any]) -> str:
    volume, dice = (_values(rows, summary, metric) for metric in ("volume_ml_reference", "dice"))
    numbers = {name: int((volume[name] > 0).sum()) for name in volume}
    if not any(numbers.values()):
        return "<p>No reference contains an object.</p>"
    words = "; ".join(
        f"{name}: {number_of(number, 'case')}, "
        f"{volume[name][volume[name] > 0].min():.3g} to {volume[name].max():.3g} mL"
        for name, number in numbers.items()
        if number
    )
    caption = "Each case by the volume of its reference (logarithmic), without cases with an empty reference."
    alt = f"Dice against the reference's volume. {words}."
    return figure("svg+xml", plots.dice_against_size(volume, dice), alt, caption)


def _reliability_plot(summary: dict[str, Any]) -> str:
    diagrams = {name: entry["reliability"] for name, entry in summary["classes"].items() if "reliability" in entry}
    if not diagrams:
        return ""
    width = next(iter(diagrams.values()))["band_mm"]
    definitions = summary["definitions"]
    caption = (
        f"Reliability diagram. Of the voxels with a given probability, the share inside the reference; {BINS} bins of "
        f"equal width, voxels of all cases together, in the band of {width:g} mm ({definitions['band_mm']}). A "
        "calibrated model is on the dashed line; below it, its probabilities are too high. Larger marks: more voxels. "
        "The scores above are means over cases."
    )
    totals = ", ".join(f"{name}: {sum(b['voxels'] for b in entry['bins'])} voxels" for name, entry in diagrams.items())
    # All classes are passed, so that each keeps its colour.
    bins = {name: diagrams[name]["bins"] if name in diagrams else [] for name in summary["classes"]}
    return figure("svg+xml", plots.reliability(bins), f"Reliability diagram. {totals}.", caption)


def _agreement_plots(rows: Sequence[ScoreRow], summary: dict[str, Any]) -> str:
    prediction, reference = (_values(rows, summary, f"volume_ml_{side}") for side in ("prediction", "reference"))
    figures = []
    for name, entry in list(summary["classes"].items())[:_AGREEMENT_PLOTS]:
        error = entry["volume_error_ml"]
        lines = (error["mean"], *sections.limits(error))
        bias = f"bias {_text('volume_error_ml', lines[0])} mL over {number_of(error['n'], 'case')}"
        alt = f"Bland-Altman plot of {name}: {bias}."
        caption = f"{name}: bias (solid) and limits of agreement (dashed), as in the table."
        plot = plots.bland_altman(prediction[name], reference[name], lines, name)
        figures.append(figure("svg+xml", plot, alt, caption))
    left_out = len(summary["classes"]) - len(figures)
    note = f"<p>The first {len(figures)} classes are drawn; the table has all.</p>" if left_out else ""
    return f'<div class="plots">{"".join(figures)}</div>{note}'


def _interactions(summary: dict[str, Any]) -> str:
    """Return the curves over corrective clicks and their tables; '' without interactions."""
    found = {name: entry["interactive"] for name, entry in summary["classes"].items() if "interactive" in entry}
    if not found:
        return ""
    figures = []
    for metric in (metric for metric in CURVES if any(metric in one["curve"][0] for one in found.values())):
        points = [
            {"x": one["interaction"], "series": name, "mean": one[metric]["mean"], "ci95": one[metric]["ci95"]}
            for name, entry in found.items()
            for one in entry["curve"]
            if metric in one
        ]
        title = name_of(metric)
        words = "; ".join(f"{point['series']} after {point['x']}: {_text(metric, point['mean'])}" for point in points)
        caption = (
            f"Mean {title} against the number of corrective clicks per object, 0 being the initial prompt. Bands: "
            f"95 % t intervals over {summary['ci95_covers']}."
        )
        plot = plots.curves(points, "corrective clicks", f"mean {title}")
        figures.append(figure("svg+xml", plot, f"Curves of {title}. {words}.", caption))
    return f'<div class="plots">{"".join(figures)}</div>{sections.interactions(summary)}'


def _worst_cases(rows: Sequence[ScoreRow], summary: dict[str, Any]) -> str:
    worst_rows = worst(rows)
    if not worst_rows:
        return "<p>No existing prediction has a score.</p>"
    volumes = ("volume_ml_prediction", "volume_ml_reference")
    columns = ["case", "class", "seed", *registry.names_with("headline"), *volumes, "empty"]
    columns = [column for column in columns if sections.has_values(worst_rows, column)]
    body = [[row_cell(row, column) for column in columns] for row in worst_rows]
    caption = (
        "Worst cases. The rows with the lowest Dice, an equal share per class; among equal ones, the larger reference "
        "first. Missing files, which count as empty, are listed under What was measured. "
        f"Tolerance of NSD {tolerances(summary)}."
    )
    listed = table(caption, [name_of(column) for column in columns], body, heads=2)
    pictures = "".join(_picture(row) for row in worst_rows if row.get(PICTURE))
    if not pictures:
        return f"{listed}<p>Pictures are in the reports of the evaluations that read the masks.</p>"
    return (
        f"{listed}<p>Pictures: the axial, coronal and sagittal plane on which the masks differ most. Amber, solid: "
        "prediction; blue, dashed: reference. The patient's right is on the left of the axial and coronal plane, and "
        f'anterior on the left of the sagittal one.</p><div class="sheets">{pictures}</div>'
    )


def _picture(row: ScoreRow) -> str:
    seed = f", seed {row['seed']}" if row.get("seed") not in (None, "") else ""
    kind = f", empty: {row['empty']}" if row["empty"] else ""
    words = f"{row['class']} of {row['case']}{seed}: Dice {row_cell(row, 'dice')}{kind}"
    alt = (
        f"Three planes with contours. {words}. Volume predicted {row_cell(row, 'volume_ml_prediction')} mL, reference "
        f"{row_cell(row, 'volume_ml_reference')} mL."
    )
    return figure("png", base64.b64decode(row[PICTURE]), alt, words)


def _text(metric: str, value: float | None) -> str:
    return str(row_cell({metric: value}, metric)) if value is not None else "none"
