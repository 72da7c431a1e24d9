"""From rows to a summary: each class over its cases, the mean over classes, and every definition that was used.

Several evaluations of one method (folds, seeds) are summarised together: their rows are one list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import cost
from sam2_3dmed_jax.evaluation.scores import BEYOND, LOWER_IS_BETTER, SCORES, SURFACE, VOLUMES
from sam2_3dmed_jax.metrics import reliability
from sam2_3dmed_jax.metrics.lesions import COUNTS, summarise_lesions
from sam2_3dmed_jax.metrics.statistics import DRAWS, bootstrap_means, interval, spread
from sam2_3dmed_jax.prompts.protocols import EXPLAINED

Row = dict[str, Any]

AUTOMATIC, PROMPTED = "automatic", "reference-prompted"  # the column "block"
AVERAGED = (*SCORES, *VOLUMES, BEYOND, *reliability.COLUMNS)
# One value in all rows of a summary: a table mixes neither blocks nor definitions.
UNIFORM = ("method", "trained_on_these_cases", "bd", "block", "protocol", "definition", "empty_policy")
DEFINITIONS = {
    "dice": "2 |P n R| / (|P| + |R|) over all voxels of the case; both masks empty: NaN, one empty: 0",
    "iou": "|P n R| / |P u R|, the same way",
    "nsd": "share of both surfaces within tolerance_mm of the other; both masks empty: NaN, one empty: 0",
    "hd95_mm": "95th percentile of distances between the surfaces in mm, as `definition` has it",
    "hd_mm": "greatest distance between the surfaces, mm",
    "assd_mm": "mean distance between the surfaces, both together, mm",
    "definition": "of surfaces: 'surface-distance' (DeepMind's, weighted by area), 'monai' or 'medpy'; '': none",
    "empty_policy": "distances where one mask is empty: 'diagonal' of the image in mm; or 'nan', and no mean",
    "*_without_prompted_slices": "over slices without a prompt; NaN where the reference lies on prompted ones alone",
    "volume_error_ml": "prediction minus reference; a volume is voxels x |det affine|; percent of the reference",
    "fp_ml_outside_extent": "millilitres predicted on slices beyond the reference's first and last one",
    "lesions": "components (26 neighbours); found: touched by the prediction; diameter: of the sphere of equal volume",
    **reliability.DEFINITIONS,
    **cost.DEFINITIONS,
    "bd": "the boundary branch at inference: 'yes', 'no', 'left out' of a checkpoint that has it, or '': not known",
    "empty": "'prediction' or 'reference' empty, 'both', or ''; an object that the reference lacks is not prompted",
    "missing": "'yes': there is no file of the prediction, or of the one to prompt from; it counts as empty",
    "block": "automatic methods and those prompted from the reference are not ranked against each other",
    "averaging": (
        "mean, SD (n - 1) and quartiles over cases with a value, a class at a time, a case being the mean over its "
        "seeds; macro: mean of the classes, without unions of others"
    ),
    "ci95": f"percentile interval of {DRAWS} bootstrap samples over cases (and, crossed, over seeds) from a fixed seed",
}


def summarise(rows: Sequence[Row], fixed_cost: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Classes over cases, and their plain mean over classes; what could not be averaged is None.

    Args:
        rows: of one method.
        fixed_cost: parameters and machine of each evaluation that the rows come from, `cost.fixed_cost`.

    Returns:
        {"classes": {name: {"cases", "tolerance_mm", "empty": {kind: count}, metric: `statistics.spread` with "ci95",
        "lesions" of tumours, "reliability" of objects}}, "macro": {metric: {"mean", "ci95"}}, "macro_classes": names,
        "macro_dice" and the like: mean or None, "missing_predictions": cases, "cost": `cost.summarise_cost`, the
        columns `UNIFORM`, "definitions", "note"}.

    Raises:
        UserError: rows that do not belong in one table, or a case that stands there twice.
    """
    if not rows:
        raise UserError("there is nothing to summarise: no case was scored; choose a fold or folder with cases")
    for column in UNIFORM:
        if len(found := {str(row.get(column, "")) for row in rows}) > 1:
            raise UserError(f"the results differ in {column} ({', '.join(sorted(found))}); summarise each by itself")
    bands = reliability.widths(rows)
    if len(bands) > 1:
        raise UserError(
            f"the results differ in band_mm ({', '.join(map(str, sorted(bands)))}); summarise each by itself"
        )
    tolerances: dict[str, Any] = {}
    for row in rows:
        if str(tolerances.setdefault(row["class"], row.get("tolerance_mm"))) != str(row.get("tolerance_mm")):
            raise UserError(f"the results differ in tolerance_mm of {row['class']}; summarise each by itself")
    metrics = [m for m in AVERAGED if m not in SURFACE or any(row.get("definition") for row in rows)]
    metrics = [m for m in metrics if m not in reliability.COLUMNS or bands]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["class"] for row in rows))
    tables = {name: {metric: values_of(rows, name, metric, cases) for metric in metrics} for name in names}
    drawn = bootstrap_means([tables[name][m] for m in metrics for name in names])
    samples = dict(zip(metrics, np.split(drawn, len(metrics), axis=1), strict=True))
    classes: dict[str, Any] = {}
    for at, name in enumerate(names):
        own = [row for row in rows if row["class"] == name]
        classes[name] = {
            "labels": str(own[0].get("labels", "")),
            "cases": len({row["case"] for row in own}),
            "tolerance_mm": tolerances[name],
            "empty": {kind: sum(row["empty"] == kind for row in own) for kind in ("both", "prediction", "reference")},
            "missing": sum(row.get("missing") == "yes" for row in own),
        }
        for metric in metrics:
            values = tables[name][metric]
            fold_of = {row["case"]: row.get("fold", "") for row in own}
            entry = spread(values, [fold_of.get(case, "") for case in cases])
            if undefined(own, metric):
                entry = {**dict.fromkeys(entry), "n": entry["n"], "undefined": True}
                samples[metric][:, at] = math.nan
            classes[name][metric] = {**entry, "ci95": interval(samples[metric][:, at])}
        if bins := reliability.pooled_bins(own):
            classes[name]["reliability"] = {"band_mm": bands.copy().pop(), "bins": bins}
        counted = [row for row in own if row.get(COUNTS[0]) not in (None, "")]
        if counted:
            lesions = [lesion for row in counted for lesion in row.get("lesions", ())]
            classes[name]["lesions"] = summarise_lesions(counted, lesions)
    macro_classes = [name for name in names if not _holds_others(rows, name)]
    columns = [names.index(name) for name in macro_classes]
    # A class without probabilities would leave a mean of the others, under the name of all.
    judged = [m for m in metrics if m not in reliability.COLUMNS or all(classes[n][m]["n"] for n in macro_classes)]
    macro = {
        metric: _macro([classes[n][metric] for n in macro_classes], samples[metric][:, columns]) for metric in judged
    }
    return {
        "note": "for research use only",
        **{column: str(rows[0].get(column, "")) for column in UNIFORM},
        "protocol": sorted({str(row["protocol"]) for row in rows}),
        "protocol_definition": EXPLAINED.get(str(rows[0]["protocol"]), "none"),
        "cases": len(cases),
        "missing_predictions": sorted({row["case"] for row in rows if row.get("missing") == "yes"}),
        **{f"macro_{metric}": entry["mean"] for metric, entry in macro.items()},
        "macro_classes": macro_classes,
        "macro": macro,
        "classes": classes,
        "cost": cost.summarise_cost(rows, fixed_cost),
        "definitions": DEFINITIONS,
    }


def values_of(rows: Sequence[Row], name: str, metric: str, cases: Sequence[str]) -> np.ndarray:
    """A metric of a class, float64 `[C, S]`: the cases given, by the seeds that the rows tell of; NaN: no value.

    Raises:
        UserError: a case has two values for one seed.
    """
    seeds = list(dict.fromkeys(str(row.get("seed", "")) for row in rows))
    found = np.full((len(cases), len(seeds)), math.nan)
    seen = set()
    at = {case: number for number, case in enumerate(cases)}
    for row in rows:
        if row["class"] == name and row["case"] in at:
            key = at[row["case"]], seeds.index(str(row.get("seed", "")))
            if key in seen:
                raise UserError(
                    f"case {row['case']} has two results for class {name} and seed {row.get('seed') or 'unknown'}; "
                    "give each result once, or evaluate with --seed"
                )
            seen.add(key)
            found[key] = row.get(metric, math.nan)
    return found


def undefined(rows: Sequence[Row], metric: str) -> bool:
    """Whether a mean would drop misses, and so reward them: a distance without a value though a mask is there."""
    return metric in LOWER_IS_BETTER and any(
        row["empty"] in ("prediction", "reference") and math.isnan(row.get(metric, math.nan)) for row in rows
    )


def _macro(entries: Sequence[dict[str, Any]], samples: np.ndarray) -> dict[str, Any]:
    """Over classes that have a mean; `samples` are `[draws, classes]`. One undefined class leaves it undefined."""
    known = [at for at, entry in enumerate(entries) if entry["mean"] is not None]
    if not known or any("undefined" in entry for entry in entries):
        return {"mean": None, "ci95": None}
    mean = sum(entries[at]["mean"] for at in known) / len(known)
    return {"mean": mean, "ci95": interval(samples[:, known].mean(1))}


def _holds_others(rows: Sequence[Row], name: str) -> bool:
    """Whether a class is a union that shares a label with a smaller class."""
    labels = {row["class"]: set(str(row.get("labels", "")).split("+")) for row in rows}
    return any(labels[name] & other and len(other) < len(labels[name]) for other in labels.values())
