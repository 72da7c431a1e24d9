"""Summary of an evaluation: each class over its cases, the mean over classes, and the definitions that were used.

Several evaluations of one method (folds, seeds) are summarised together: their rows are one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.evaluation import cost
from sam2_3dmed_jax.evaluation.class_means import metric_entry, seeds_of, values_of
from sam2_3dmed_jax.evaluation.interaction_curves import DEFINITIONS as INTERACTION_DEFINITIONS
from sam2_3dmed_jax.evaluation.interaction_curves import summarise_interactions
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.lesions import summarise_lesions
from sam2_3dmed_jax.metrics.prompt_distance import mean_by_distance
from sam2_3dmed_jax.metrics.reliability import band_widths, pooled_bins
from sam2_3dmed_jax.metrics.statistics import estimate, interval
from sam2_3dmed_jax.prompts.protocols import PROTOCOL_DESCRIPTIONS

# Columns with one value in all rows of a summary: a table mixes neither blocks nor definitions.
UNIFORM = ("method", "trained_on_these_cases", "bd", "zoom", "block", "protocol", "definition", "empty_policy")
_DEFINITIONS = {
    "definition": "of surfaces: 'surface-distance' (DeepMind's, weighted by area), 'monai' or 'medpy'; '': none",
    "empty_policy": "distances where one mask is empty: 'diagonal' of the image in mm; or 'nan', and no mean",
    "band_mm": (
        "half width of the band around the reference's boundary: voxels whose centre is at most this far, in mm, "
        "from the nearest voxel centre on the other side, inside and outside alike; prompted slices are among them"
    ),
    "by_distance": (
        "Dice of the slices in each bin of distance, in mm along the slice axis, from the nearest prompted slice: per "
        "case, all slices of the bin that hold the prediction or the reference together; mean over cases that have some"
    ),
    **cost.DEFINITIONS,
    **INTERACTION_DEFINITIONS,
    "bd": "the boundary branch at inference: 'yes', 'no', 'left out' of a checkpoint that has it, or '': not known",
    "zoom": "on each object: 'off', 'auto', or the side of its first region in mm; '': not known",
    "empty": "'prediction' or 'reference' empty, 'both', or ''; an object that the reference lacks is not prompted",
    "missing": "'yes': the file of the prediction, or of the one to prompt from, is missing; it counts as empty",
    "block": "automatic methods and those prompted from the reference are not ranked against each other",
    "averaging": (
        "mean, SD (n - 1) and quartiles over cases with a value, separately for each class, a case being the mean over "
        "its seeds; macro: mean of the classes, without unions of others"
    ),
    "ci95": (
        "t interval of the mean over cases and seeds, crossed; Satterthwaite's degrees of freedom, which few seeds "
        "make few; within the range of the metric"
    ),
    "ci95_covers": (
        "'cases and seeds', or 'cases' with one seed: then noise between trainings is not in the intervals, which are "
        "too narrow for another training"
    ),
}


def definitions() -> dict[str, str]:
    """Return the definition of each metric and of each other term of the tables."""
    return {**registry.definitions(), **_DEFINITIONS}


def summarise(rows: Sequence[ScoreRow], fixed_cost: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Summarise rows: classes over cases, and their plain mean over classes; a mean that is not defined is None.

    Args:
        rows: of one method.
        fixed_cost: `cost.fixed_cost` of each evaluation that the rows come from.

    Returns:
        {"classes": {name: {"cases", "tolerance_mm", "empty": {kind: count}, metric: `statistics.spread` with "ci95",
        "lesions" of tumours, "by_distance" of prompted classes, "reliability" of objects, "interactive" of the protocol
        of this name}},
        "macro": {metric: {"mean", "ci95"}}, "macro_classes": names,
        "macro_dice" and likewise of other metrics: mean or None, "missing_predictions": cases, "cost": `CostSummary`,
        "seeds": ids, "ci95_covers", the columns `UNIFORM`, "definitions", "note"}. The order of rows does not change
        any number.

    Raises:
        UserError: rows that do not belong in one table, or a case with two rows of one class and seed.
    """
    bands, tolerances = _check_uniform(rows)
    metrics = _averaged_metrics(rows, bands)
    cases = sorted({row["case"] for row in rows})
    names = list(dict.fromkeys(row["class"] for row in rows))
    tables = {name: {metric: values_of(rows, name, metric, cases) for metric in metrics} for name in names}
    classes: dict[str, Any] = {}
    for name in names:
        class_rows = [row for row in rows if row["class"] == name]
        fold_of = {row["case"]: row.get("fold", "") for row in class_rows}
        classes[name] = _counts(class_rows, tolerances[name])
        for metric in metrics:
            folds = [fold_of.get(case, "") for case in cases]
            classes[name][metric] = metric_entry(class_rows, metric, tables[name][metric], folds)
        classes[name] |= _details(class_rows)
    macro_classes = [name for name in names if not _is_union_of_others(rows, name)]
    macro = _macro_entries(classes, macro_classes, tables, metrics)
    seeds = seeds_of(rows)
    return {
        "note": "for research use only",
        **{column: str(rows[0].get(column, "")) for column in UNIFORM},
        "protocol": sorted({str(row["protocol"]) for row in rows}),
        "protocol_definition": PROTOCOL_DESCRIPTIONS.get(str(rows[0]["protocol"]), "none"),
        "cases": len(cases),
        "seeds": seeds,
        "ci95_covers": "cases and seeds" if len(seeds) > 1 else "cases",
        "missing_predictions": sorted({row["case"] for row in rows if row.get("missing") == "yes"}),
        **{f"macro_{metric}": entry["mean"] for metric, entry in macro.items()},
        "macro_classes": macro_classes,
        "macro": macro,
        "classes": classes,
        "cost": cost.summarise_cost(rows, fixed_cost),
        "definitions": definitions(),
    }


def _check_uniform(rows: Sequence[ScoreRow]) -> tuple[set[float], dict[str, Any]]:
    """Check that rows belong in one table; return the widths of their bands and the tolerance of each class."""
    if not rows:
        raise UserError("no case was scored, so the summary is empty; choose a fold or folder with cases")
    for column in UNIFORM:
        if len(values := {str(row.get(column, "")) for row in rows}) > 1:
            raise UserError(f"the results differ in {column} ({listed(sorted(values))}); summarise them separately")
    bands = band_widths(rows)
    if len(bands) > 1:
        raise UserError(f"the results differ in band_mm ({listed(sorted(bands))}); summarise them separately")
    tolerances: dict[str, Any] = {}
    for row in rows:
        if str(tolerances.setdefault(row["class"], row.get("tolerance_mm"))) != str(row.get("tolerance_mm")):
            raise UserError(f"the results differ in tolerance_mm of {row['class']}; summarise them separately")
    return bands, tolerances


def _averaged_metrics(rows: Sequence[ScoreRow], bands: set[float]) -> list[str]:
    absent = [] if any(row.get("definition") for row in rows) else registry.names_requiring("surfaces")
    absent += [] if bands else registry.names_requiring("logits")
    # Results of earlier versions lack the metrics that were added later.
    absent += [name for name in registry.averaged_names() if not any(name in row for row in rows)]
    return [name for name in registry.averaged_names() if name not in absent]


def _counts(rows: Sequence[ScoreRow], tolerance_mm: Any) -> dict[str, Any]:
    """Return the entries of a class that are not metrics."""
    return {
        "labels": str(rows[0].get("labels", "")),
        "cases": len({row["case"] for row in rows}),
        "tolerance_mm": tolerance_mm,
        "empty": {kind: sum(row["empty"] == kind for row in rows) for kind in ("both", "prediction", "reference")},
        "missing": sum(row.get("missing") == "yes" for row in rows),
    }


def _details(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return the reliability diagram, the Dice by distance, lesions and interactions of a class, if it has them."""
    details: dict[str, Any] = {}
    if interactive := summarise_interactions(rows):
        details["interactive"] = interactive
    if distances := mean_by_distance(rows):
        details["by_distance"] = distances
    if bins := pooled_bins(rows):
        details["reliability"] = {"band_mm": band_widths(rows).pop(), "bins": bins}
    if counted := [row for row in rows if row.get("lesions_reference") not in (None, "")]:
        lesions = [lesion for row in counted for lesion in row.get("lesions", ())]
        details["lesions"] = summarise_lesions(counted, lesions)
    return details


def _macro_entries(
    classes: Mapping[str, Any],
    names: Sequence[str],
    tables: Mapping[str, Mapping[str, np.ndarray]],
    metrics: Sequence[str],
) -> dict[str, Any]:
    """Return the mean over classes of each metric.

    Args:
        classes: entries of all classes.
        names: of the classes to average.
        tables: values `[C, S]` of each class and metric, on the same cases and seeds.
        metrics: whose means are returned.
    """
    # If a class has no probabilities, a mean over the others would pass for the mean over all classes.
    needs_all = registry.names_requiring("logits")
    return {
        metric: _macro(metric, {name: classes[name][metric] for name in names}, tables)
        for metric in metrics
        if metric not in needs_all or all(classes[name][metric]["n"] for name in names)
    }


def _macro(
    metric: str, entries: Mapping[str, dict[str, Any]], tables: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Return the mean over the classes that have one; it is None if the mean of any class is undefined."""
    known = sorted(name for name, entry in entries.items() if entry["mean"] is not None)
    if not known or any("undefined" in entry for entry in entries.values()):
        return {"mean": None, "ci95": None}
    mean = sum(entries[name]["mean"] for name in known) / len(known)
    of_classes = estimate([[(1 / len(known), tables[name][metric]) for name in known]])
    return {"mean": mean, "ci95": interval(of_classes, registry.range_of(metric))}


def _is_union_of_others(rows: Sequence[ScoreRow], name: str) -> bool:
    """Return whether a class is a union that shares a label with a smaller class."""
    labels = {row["class"]: set(str(row.get("labels", "")).split("+")) for row in rows}
    return any(labels[name] & other and len(other) < len(labels[name]) for other in labels.values())
