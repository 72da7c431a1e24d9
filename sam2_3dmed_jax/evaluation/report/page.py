"""The page of an evaluation: one file that loads nothing, runs nothing, and has the numbers of those beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from sam2_3dmed_jax.evaluation.report import plots, tables
from sam2_3dmed_jax.evaluation.report.cost import cost_tables
from sam2_3dmed_jax.evaluation.report.frame import framed
from sam2_3dmed_jax.evaluation.report.markup import figure, table
from sam2_3dmed_jax.evaluation.report.wording import name_of, row_cell, tolerances
from sam2_3dmed_jax.evaluation.report.worst_cases import PICTURE, worst
from sam2_3dmed_jax.evaluation.scores import SCORES
from sam2_3dmed_jax.evaluation.summary import AUTOMATIC, Row, values_of
from sam2_3dmed_jax.metrics.reliability import BINS
from sam2_3dmed_jax.metrics.statistics import over_seeds

_PLOTTED = (*(m for m in SCORES if not m.startswith("iou_")), "volume_error_percent")
_AGREEMENT = 12  # plots of volumes, at most


def report_page(rows: Sequence[Row], summary: dict[str, Any], comparison: dict[str, Any] | None = None) -> str:
    """The page of an evaluation, or of several that are summarised together.

    Args:
        rows: of `results.COLUMNS`; those with `pictures.PICTURE` are shown.
        summary: `summarise(rows)`.
        comparison: `compare`'s, or None.
    """
    method = summary["method"] or "a method"
    sections = [
        ("What was measured", tables.what_was_measured(rows, summary)),
        ("Scores", tables.scores(summary) + tables.counts(summary) + tables.lesions(summary)),
        ("Comparison", tables.comparison(comparison) if comparison else ""),
        ("Cost", cost_tables(summary)),
        ("Spread over cases", _boxes(rows, summary)),
        ("Dice against organ size", _sizes(rows, summary)),
        ("Reliability at the boundary", _reliability(summary)),
        ("Agreement of volumes", tables.volumes(summary) + _agreement(rows, summary)),
        ("Worst cases", _worst(rows, summary)),
        ("All cases", f"<details><summary>{len(rows)} rows</summary>{tables.cases(rows)}</details>"),
        ("Definitions", tables.definitions(summary)),
    ]
    return framed(f"Evaluation of {method}: {summary['cases']} cases", sections)


def _values(rows: Sequence[Row], summary: dict[str, Any], metric: str) -> dict[str, Any]:
    """`[C]` of each class: cases, averaged over seeds."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    return {name: over_seeds(values_of(rows, name, metric, cases)) for name in summary["classes"]}


def _boxes(rows: Sequence[Row], summary: dict[str, Any]) -> str:
    classes = summary["classes"]
    prompted = summary["block"] != AUTOMATIC
    shown = []
    for metric in _PLOTTED:
        if metric not in next(iter(classes.values())) or ("without" in metric and not prompted):
            continue
        values = _values(rows, summary, metric)
        told = [
            f"{name}: median {_text(metric, entry[metric]['median'])}, mean {_text(metric, entry[metric]['mean'])}, "
            f"n = {entry[metric]['n']}"
            for name, entry in classes.items()
        ]
        caption = (
            f"{name_of(metric)}. Box: quartiles and median; whiskers: last case within 1.5 times their distance; "
            "grey: cases (means over seeds); diamond: mean, with its 95 % interval as the black line below."
        )
        caption += f" Tolerance {tolerances(summary)}." if metric == "nsd" else ""
        if plots.is_logarithmic(metric, values):
            caption += " The axis is linear up to 10, and logarithmic beyond."
        if metric.endswith("_mm"):
            caption += f" Surfaces as '{summary['definition']}'; one mask empty: '{summary['empty_policy']}'."
        alt = f"Box plots of {name_of(metric)} by class. {'; '.join(told)}."
        shown.append(figure("svg+xml", plots.boxes(metric, values, classes), alt, caption))
    return f'<div class="plots">{"".join(shown)}</div>'


def _sizes(rows: Sequence[Row], summary: dict[str, Any]) -> str:
    volume, dice = (_values(rows, summary, metric) for metric in ("volume_ml_reference", "dice"))
    there = {name: int((volume[name] > 0).sum()) for name in volume}
    if not any(there.values()):
        return "<p>No reference holds an object.</p>"
    told = "; ".join(
        f"{name}: {number} cases, {volume[name][volume[name] > 0].min():.3g} to {volume[name].max():.3g} mL"
        for name, number in there.items()
        if number
    )
    caption = "Each case by the volume of its reference (logarithmic); cases with an empty reference have none."
    alt = f"Dice against the reference's volume. {told}."
    return figure("svg+xml", plots.dice_against_size(volume, dice), alt, caption)


def _reliability(summary: dict[str, Any]) -> str:
    found = {name: entry["reliability"] for name, entry in summary["classes"].items() if "reliability" in entry}
    if not found:
        return ""
    width = next(iter(found.values()))["band_mm"]
    told = summary["definitions"]
    caption = (
        f"Reliability diagram. Of the voxels that were given a probability, the share inside the reference; {BINS} "
        f"bins of equal width, voxels of all cases together, in the band of {width:g} mm ({told['band_mm']}). A "
        "calibrated model lies on the dashed line; below it, it claims too much. Larger marks: more voxels. The scores "
        "above are means over cases."
    )
    totals = ", ".join(f"{name}: {sum(b['voxels'] for b in entry['bins'])} voxels" for name, entry in found.items())
    bins = {name: found[name]["bins"] if name in found else [] for name in summary["classes"]}  # one colour a class
    return figure("svg+xml", plots.reliability(bins), f"Reliability diagram. {totals}.", caption)


def _agreement(rows: Sequence[Row], summary: dict[str, Any]) -> str:
    prediction, reference = (_values(rows, summary, f"volume_ml_{side}") for side in ("prediction", "reference"))
    shown = []
    for name, entry in list(summary["classes"].items())[:_AGREEMENT]:
        found = entry["volume_error_ml"]
        lines = (found["mean"], *tables.limits(found))
        alt = f"Bland-Altman plot of {name}: bias {_text('volume_error_ml', lines[0])} mL over {found['n']} cases."
        caption = f"{name}: bias (solid) and limits of agreement (dashed), as in the table."
        shown.append(
            figure("svg+xml", plots.bland_altman(prediction[name], reference[name], lines, name), alt, caption)
        )
    left = len(summary["classes"]) - len(shown)
    note = f"<p>The first {len(shown)} classes are drawn; the table has all.</p>" if left else ""
    return f'<div class="plots">{"".join(shown)}</div>{note}'


def _worst(rows: Sequence[Row], summary: dict[str, Any]) -> str:
    found = worst(rows)
    if not found:
        return "<p>No prediction that is there has a score.</p>"
    columns = ["case", "class", "seed", "dice", "nsd", "hd95_mm", "volume_ml_prediction", "volume_ml_reference"]
    columns = [column for column in (*columns, "empty") if tables.told(found, column)]
    body = [[row_cell(row, column) for column in columns] for row in found]
    caption = (
        "Worst cases. The rows with the lowest Dice, each class having its share; of equal ones, those with the "
        "larger reference first. Missing files, which count as empty, are listed above and not here. "
        f"Tolerance of NSD {tolerances(summary)}."
    )
    listed = table(caption, [name_of(column) for column in columns], body, heads=2)
    pictures = "".join(_picture(row) for row in found if row.get(PICTURE))
    if not pictures:
        return f"{listed}<p>Pictures are in the reports of the evaluations that read the masks.</p>"
    return (
        f"{listed}<p>Pictures: the axial, coronal and sagittal plane on which the masks differ most. Amber, solid: "
        "prediction; blue, dashed: reference. The patient's right is on the left of the axial and coronal plane, and "
        f'anterior on the left of the sagittal one.</p><div class="sheets">{pictures}</div>'
    )


def _picture(row: Row) -> str:
    seed = f", seed {row['seed']}" if row.get("seed") not in (None, "") else ""
    kind = f", empty: {row['empty']}" if row["empty"] else ""
    told = f"{row['class']} of {row['case']}{seed}: Dice {row_cell(row, 'dice')}{kind}"
    alt = (
        f"Three planes with contours. {told}. Volume predicted {row_cell(row, 'volume_ml_prediction')} mL, reference "
        f"{row_cell(row, 'volume_ml_reference')} mL."
    )
    return figure("png", base64.b64decode(row[PICTURE]), alt, told)


def _text(metric: str, value: float | None) -> str:
    return str(row_cell({metric: value}, metric)) if value is not None else "none"
