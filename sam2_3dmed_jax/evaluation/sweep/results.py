"""The tables of a sweep: `sweep.csv`, a row a cell; `summary.csv`, a row a setting and class; and what they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.evaluation.scores import BEYOND, OVERLAP, SURFACE, UNPROMPTED, VOLUMES
from sam2_3dmed_jax.evaluation.summary import AVERAGED, DEFINITIONS, Row, summarise
from sam2_3dmed_jax.evaluation.sweep.case_sweep import walks_of
from sam2_3dmed_jax.evaluation.sweep.cells import Cells
from sam2_3dmed_jax.evaluation.sweep.entries import Entry
from sam2_3dmed_jax.evaluation.sweep.settings import FACTORS, Setting, base_of
from sam2_3dmed_jax.metrics.lesions import COUNTS

TABLE, SUMMARY, RECORD, REPORT = "sweep.csv", "summary.csv", "sweep.json", "report.html"
EXPLORATORY = "exploratory"
WHY = (
    "Exploratory: settings are scored on the held-out test cases, so none may be chosen by these numbers and then "
    "reported on the same cases."
)
MACRO = "macro"  # a class of the summary: the mean over classes
ROW_COLUMNS = (
    *("kind", "model", "checkpoint", "fold", "seed", "case", "class", *FACTORS),
    *(*OVERLAP, *SURFACE, *UNPROMPTED, *VOLUMES, BEYOND, *COUNTS, "empty"),
    *("moved_mm", "prompted_onto", "n_prompts", "prompt_slices", "block", "protocol", "trained_on_these_cases"),
    *("labels", "tolerance_mm", "definition", "empty_policy"),
)
SUMMARY_COLUMNS = (
    *("kind", "model", *FACTORS, "class", "cases", "n"),
    *(f"{metric}_{what}" for metric in AVERAGED for what in ("mean", "ci95_low", "ci95_high")),
    *("empty_prediction", "empty_reference", "empty_both", "moved_mm", "protocol", "trained_on_these_cases"),
    *("labels", "tolerance_mm", "definition", "empty_policy"),
)
TERMS = {
    "kind": WHY,
    "model": "a checkpoint as the spec names it; of {fold} and {seed}, all folds and seeds together",
    "prompt": "made from the reference on each prompted slice: one click, one tight box, or the reference's own mask",
    "placement": "of a click: the in-plane maximum of the distance transform, or a voxel of the object at random",
    "noise_mm": "SD in mm along both in-plane axes of a click, of a whole mask, or of each side of a box; from the "
    "seed by case, object and slice, the same draw for all levels",
    "misplacement_mm": "the whole prompt is moved so far in the plane, in a direction drawn from the seed by case and "
    "object, the same for all levels, slices and kinds of prompt; it stays on the slice",
    "neighbour": "yes: the prompt is made of the nearest other label on the slice; where there is none, it is moved so "
    "that its centre lies just outside of the object, by misplacement_mm",
    "prompted_slices": "the slice with the largest area, and others spread evenly over the reference's extent, which "
    "several prompts thus tell; fewer where the object has fewer slices",
    "order": "sequential: up, then down, where the second sees the first; independent: both from the prompts alone",
    "bd": "boundary detection at inference; none: the checkpoint has no such branch",
    "threshold": "logit above which a voxel is inside; all thresholds are laid on the same logits",
    "moved_mm": "mean distance in mm from the middle of the undisturbed prompt to that of the given one",
    "prompted_onto": "'object', 'outside', or the label values of neighbours",
    "cases": "cases with a row; n: those with a Dice, which the means are taken over",
}


def read_rows(entries: Sequence[Entry], settings: Sequence[Setting], cells: Cells) -> tuple[list[Row], int]:
    """The rows of all cells that are finished, in the order of checkpoints, cases and settings; and walks that lack."""
    rows: list[Row] = []
    missing = 0
    for entry in entries:
        walks = walks_of(settings, entry)
        for case in entry.cases:
            for walk, thresholds in walks.items():
                found = cells.get(entry, case, walk)
                missing += any(threshold not in found for threshold in thresholds)
                for threshold in (threshold for threshold in thresholds if threshold in found):
                    setting = dataclasses.asdict(dataclasses.replace(walk, threshold=threshold))
                    about = {"kind": EXPLORATORY, "model": entry.model, "checkpoint": entry.checkpoint}
                    rows += [{**row, **about, **setting} for row in found[threshold]]
    return rows, missing


def summary_rows(rows: Sequence[Row], progress: Callable[[str, int, int], None] | None = None) -> list[Row]:
    """A row a model, setting and class, and one for the mean over classes, of `SUMMARY_COLUMNS`.

    Means, intervals and the rule that a miss never improves a mean are `summary.summarise`'s.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["trained_on_these_cases"], *(row[f] for f in FACTORS)), []).append(row)
    table: list[Row] = []
    for done, own in enumerate(groups.values(), 1):
        found = summarise(own)
        shared = {name: own[0][name] for name in ("kind", "model", *FACTORS, "protocol", "trained_on_these_cases")}
        shared |= {"definition": found["definition"], "empty_policy": found["empty_policy"]}
        for name, entry in found["classes"].items():
            of_class = [row["moved_mm"] for row in own if row["class"] == name and row["moved_mm"] == row["moved_mm"]]
            table.append(
                {
                    **shared,
                    "class": name,
                    "cases": entry["cases"],
                    "n": entry["dice"]["n"],
                    "labels": entry["labels"],
                    "tolerance_mm": entry["tolerance_mm"],
                    "moved_mm": sum(of_class) / len(of_class) if of_class else "",
                    **{f"empty_{kind}": count for kind, count in entry["empty"].items()},
                    **_means(entry),
                }
            )
        table.append({**shared, "class": MACRO, "cases": found["cases"], **_means(found["macro"])})
        if progress:
            progress("summarising settings", done, len(groups))
    return table


def record(spec: SweepSpec, entries: Sequence[Entry], rows: Sequence[Row], summary: Sequence[Row]) -> dict[str, Any]:
    """What `sweep.json` holds: the spec, what was scored, and every definition."""
    return {
        "note": "for research use only",
        "kind": EXPLORATORY,
        "why": WHY,
        "cells": len(rows),
        "settings": len({tuple(row[name] for name in ("model", *FACTORS)) for row in summary}),
        "base": dataclasses.asdict(base_of(spec)),
        "spec": dataclasses.asdict(spec),
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
        "definitions": {**DEFINITIONS, **TERMS},
    }


def as_text(row: Row) -> Row:
    """A row with the words that its cells have in files."""
    return {**row, "neighbour": "yes" if row["neighbour"] else "no"}


def _means(entries: dict[str, Any]) -> Row:
    found: Row = {}
    for metric in (metric for metric in AVERAGED if metric in entries):
        low, high = entries[metric]["ci95"] or ("", "")
        mean = entries[metric]["mean"]
        found |= {f"{metric}_mean": "" if mean is None else mean, f"{metric}_ci95_low": low}
        found[f"{metric}_ci95_high"] = high
    return found
