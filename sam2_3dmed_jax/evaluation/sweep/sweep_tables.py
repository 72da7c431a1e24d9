"""Tables of a sweep: `sweep.csv`, one row per cell; `summary.csv`, one row per setting and class; and definitions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.summary import definitions, summarise
from sam2_3dmed_jax.evaluation.sweep.case_sweep import propagations_of
from sam2_3dmed_jax.evaluation.sweep.cells import Cells
from sam2_3dmed_jax.evaluation.sweep.entries import Entry
from sam2_3dmed_jax.evaluation.sweep.factors import FACTORS, Setting, base_of
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtype
from sam2_3dmed_jax.runtime.progress import Progress

TABLE, SUMMARY, RECORD, REPORT = "sweep.csv", "summary.csv", "sweep.json", "report.html"
EXPLORATORY = "exploratory"
WHY = (
    "Exploratory: settings are scored on the held-out test cases, so none may be chosen by these numbers and then "
    "reported on the same cases."
)
NO_SWAP = (
    "prompt_of other: no case has two objects without a common label, so there are no scores with exchanged prompts"
)
MACRO = "macro"  # a class of the summary: the mean over classes
TERMS = {
    "kind": WHY,
    "model": "a checkpoint as the spec names it; of {fold} and {seed}, all folds and seeds together",
    "prompt": "made from the reference on each prompted slice: one click, one tight box, or the mask of the reference",
    "placement": "of a click: the in-plane maximum of the distance transform, or a voxel of the object at random",
    "noise_mm": "SD in mm along both in-plane axes of a click, of a whole mask, or of each side of a box; from the "
    "seed by case, object and slice, the same draw for all levels",
    "misplacement_mm": "distance in the plane by which the whole prompt is moved, in a direction drawn from the seed "
    "by case and object, the same for all levels, slices and kinds of prompt; it stays on the slice",
    "neighbour": "yes: the prompt is made from the nearest other label on the slice; without another label, it is "
    "moved so that its centre is just outside of the object, by misplacement_mm",
    "prompt_of": "own; other: each object gets the prompt of the next object of its case (in the order of label "
    "values, cyclic; objects that share a label are passed over) and is scored against its own reference. A model that "
    "follows its prompt has a Dice near the overlap of both objects, which is 0, and a model that ignores it keeps its "
    "Dice; a class without another object has no row",
    "prompted_slices": "the slice with the largest area, and others spread evenly over the reference's extent, which "
    "several prompts thus reveal; fewer if the object has fewer slices",
    "corrections": "clicks per object after the prompt, each at the voxel deepest (mm) inside the largest component of "
    "the error of the mask at logit 0, positive if missed and negative if excess; 0 with the prompt of another object",
    "order": "sequential: up, then down with the memory of the first; independent: both from the prompts alone",
    "memory_selection": "which memories of unprompted slices a slice sees; stored: as the checkpoint was trained",
    "bd": "boundary detection at inference; none: the checkpoint has no such branch",
    "threshold": "logit above which a voxel is inside; all thresholds are applied to the same logits",
    "moved_mm": "mean distance in mm from the middle of the undisturbed prompt to the middle of the actual one",
    "prompted_onto": "'object', 'outside', or the label values of neighbours or of the other object",
    "cases": "cases with a row; n: cases with a Dice, over which means are taken",
}


def row_columns() -> tuple[str, ...]:
    """Return the columns of `sweep.csv`."""
    return (
        *("kind", "model", "checkpoint", "fold", "seed", "case", "class", *FACTORS),
        *(*registry.names_requiring("masks", "surfaces", "prompts"), *registry.names_requiring("tumour"), "empty"),
        *("moved_mm", "prompted_onto", "n_prompts", "prompt_slices", "block", "protocol", "trained_on_these_cases"),
        *("labels", "tolerance_mm", "definition", "empty_policy"),
    )


def summary_columns() -> tuple[str, ...]:
    """Return the columns of `summary.csv`."""
    return (
        *("kind", "model", *FACTORS, "class", "cases", "n"),
        *(f"{metric}_{what}" for metric in registry.averaged_names() for what in ("mean", "ci95_low", "ci95_high")),
        *("empty_prediction", "empty_reference", "empty_both", "moved_mm", "protocol", "trained_on_these_cases"),
        *("labels", "tolerance_mm", "definition", "empty_policy"),
    )


def read_rows(entries: Sequence[Entry], settings: Sequence[Setting], cells: Cells) -> tuple[list[ScoreRow], int]:
    """Read the rows of all finished cells, in the order of checkpoints, cases and settings.

    Returns:
        The rows, and the number of propagations that are missing.
    """
    rows: list[ScoreRow] = []
    missing = 0
    for entry in entries:
        propagations = propagations_of(settings, entry)
        for case in entry.cases:
            for propagation, thresholds in propagations.items():
                finished = cells.get(entry, case, propagation)
                missing += any(threshold not in finished for threshold in thresholds)
                for threshold in (threshold for threshold in thresholds if threshold in finished):
                    setting = dataclasses.asdict(dataclasses.replace(propagation, threshold=threshold))
                    checkpoint = {"kind": EXPLORATORY, "model": entry.model, "checkpoint": entry.checkpoint}
                    rows += [{**row, **checkpoint, **setting} for row in finished[threshold]]
    return rows, missing


def summary_rows(rows: Sequence[ScoreRow], progress: Progress | None = None) -> list[ScoreRow]:
    """Return one row per model, setting and class, and one for the mean over classes, with `summary_columns`.

    Means, intervals and the rule that a miss never improves a mean come from `summary.summarise`.
    """
    groups: dict[tuple[Any, ...], list[ScoreRow]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["trained_on_these_cases"], *(row[f] for f in FACTORS)), []).append(row)
    table: list[ScoreRow] = []
    for done, group in enumerate(groups.values(), 1):
        summary = summarise(group)
        shared = {name: group[0][name] for name in ("kind", "model", *FACTORS, "protocol", "trained_on_these_cases")}
        shared |= {"definition": summary["definition"], "empty_policy": summary["empty_policy"]}
        for name, entry in summary["classes"].items():
            moved = [row["moved_mm"] for row in group if row["class"] == name and not math.isnan(row["moved_mm"])]
            table.append(
                {
                    **shared,
                    "class": name,
                    "cases": entry["cases"],
                    "n": entry["dice"]["n"],
                    "labels": entry["labels"],
                    "tolerance_mm": entry["tolerance_mm"],
                    "moved_mm": sum(moved) / len(moved) if moved else "",
                    **{f"empty_{kind}": count for kind, count in entry["empty"].items()},
                    **_means(entry),
                }
            )
        table.append({**shared, "class": MACRO, "cases": summary["cases"], **_means(summary["macro"])})
        if progress:
            progress("summarising settings", done, len(groups))
    return table


def record(
    spec: SweepSpec,
    entries: Sequence[Entry],
    rows: Sequence[ScoreRow],
    summary: Sequence[ScoreRow],
    compute_dtype: ComputeDtype,
) -> dict[str, Any]:
    """Return the content of `sweep.json`: the spec, the checkpoints with their cases, and all definitions."""
    return {
        "note": "for research use only",
        "kind": EXPLORATORY,
        "why": WHY,
        "cells": len(rows),
        "settings": len({tuple(row[name] for name in ("model", *FACTORS)) for row in summary}),
        "base": dataclasses.asdict(base_of(spec)),
        "spec": dataclasses.asdict(spec),
        "compute_dtype": compute_dtype,
        "checkpoints": [
            {
                "model": entry.model,
                "checkpoint": entry.checkpoint,
                "fold": entry.fold,
                "seed": entry.seed,
                "trained_on_these_cases": entry.trained,
                "config_sha256": entry.digest,
                "cases": list(entry.cases),
            }
            for entry in entries
        ],
        "definitions": {**definitions(), **TERMS},
    }


def as_text(row: ScoreRow) -> ScoreRow:
    """Return a row with the words of its cells in files."""
    return {**row, "neighbour": "yes" if row["neighbour"] else "no"}


def _means(entries: dict[str, Any]) -> ScoreRow:
    means: ScoreRow = {}
    for metric in (metric for metric in registry.averaged_names() if metric in entries):
        low, high = entries[metric]["ci95"] or ("", "")
        mean = entries[metric]["mean"]
        means |= {f"{metric}_mean": "" if mean is None else mean, f"{metric}_ci95_low": low}
        means[f"{metric}_ci95_high"] = high
    return means
