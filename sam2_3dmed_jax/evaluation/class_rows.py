"""The rows of one case, one per class, from its label map and the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.evaluation.cost import UNKNOWN
from sam2_3dmed_jax.evaluation.interactions import Interaction
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.metrics.mask_pair import MaskPair
from sam2_3dmed_jax.metrics.registry import compute_metrics
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, object_prompts, relevant_prompts
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_layers import LabelLayers, flat_labels
from sam2_3dmed_jax.volume.zoom import Logits

NOT_MEASURED = {"bd": "", "zoom": "", **UNKNOWN}  # columns of the run that produced the labels, for labels from files


def score_labels(
    case: str,
    labels: np.ndarray | LabelLayers,
    reference: np.ndarray | LabelLayers,
    grid: Grid,
    settings: EvaluationSettings,
    missing: bool = False,
) -> list[ScoreRow]:
    """Score an existing label map, with the prompts that the protocol makes from its reference.

    Args:
        case: its id.
        labels: integers `[D, H, W]`, or layers of them.
        reference: integers `[D, H, W]`, or layers of them.
        grid: of both.
        settings: its protocol, if any, declares how the method was prompted.
        missing: the file does not exist, and `labels` are empty.

    Raises:
        UserError: surface metrics on a slanted grid without resampling.
    """
    prompts = prompts_of_labels(reference, grid, settings) if settings.protocol else {}
    return score_classes(case, labels, reference, grid, prompts, settings, missing=missing)


def score_classes(
    case: str,
    labels: np.ndarray | LabelLayers,
    reference: np.ndarray | LabelLayers,
    grid: Grid,
    prompts: ObjectPrompts,
    settings: EvaluationSettings,
    run_columns: Mapping[str, Any] = NOT_MEASURED,
    missing: bool = False,
    logits: Mapping[str, Logits | None] | None = None,
) -> list[ScoreRow]:
    """Score a label map: one row per class of the settings.

    Args:
        case: its id.
        labels: integers `[D, H, W]`, or layers of them.
        reference: integers `[D, H, W]`, or layers of them.
        grid: of both.
        prompts: that the method received, by object.
        settings: of the evaluation.
        run_columns: columns of the run that produced the labels.
        missing: the file does not exist, and `labels` are empty.
        logits: float32 `[D, S/4, S/4]` by class name, of classes that are prompted objects.

    Raises:
        UserError: surface metrics on a slanted grid without resampling.
    """
    rows = []
    for entry in settings.classes:
        relevant = relevant_prompts(entry.values, prompts)
        slices = sorted({prompt.slice for prompt in relevant})
        pair = MaskPair(
            entry.mask(labels),
            entry.mask(reference),
            grid,
            prompted_slices=slices,
            tolerance_mm=entry.tolerance_mm,
            settings=settings.metrics,
            tumour=entry.tumour,
            logits=(logits or {}).get(entry.name),
            band_mm=settings.band_mm,
        )
        source = "reference" if settings.prompt_files is None else "predictions"
        row = {
            "case": case,
            "class": entry.name,
            **compute_metrics(pair),
            "empty": pair.empty,
            "missing": "yes" if missing else "no",
            "block": settings.block,
            "protocol": settings.protocol_column,
            "prompt_source": source if relevant else "none",
            "n_prompts": len(relevant),
            "prompt_slices": " ".join(map(str, slices)),
            "band_mm": math.nan,
            **run_columns,
            **settings.method_columns,
            "labels": "+".join(map(str, entry.values)),
            "tolerance_mm": entry.tolerance_mm,
            "definition": settings.metrics.definition if settings.metrics.surfaces else "",
            "empty_policy": settings.metrics.empty if settings.metrics.surfaces else "",
        }
        if entry.tumour:
            row["lesions"] = pair.lesions[1]
        if pair.by_distance:
            row["by_distance"] = pair.by_distance
        if pair.reliability.bins:
            row |= {"band_mm": settings.band_mm, "reliability": pair.reliability.bins}
        rows.append(row)
    return rows


def add_interactions(rows: Sequence[ScoreRow], scores: Sequence[Mapping[str, Interaction]]) -> None:
    """Add the scores after each interaction to the rows of the classes that the case has."""
    for row in rows:
        if interactions := [of_class[row["class"]] for of_class in scores if row["class"] in of_class]:
            row["interactions"] = interactions


def prompts_of_labels(reference: np.ndarray | LabelLayers, grid: Grid, settings: EvaluationSettings) -> ObjectPrompts:
    """Return the prompts that the protocol makes from a label map, integers `[D, H, W]` or layers of them."""
    return object_prompts(
        settings.protocol, flat_labels(reference), grid.spacing, settings.objects, settings.clip_slices
    )
