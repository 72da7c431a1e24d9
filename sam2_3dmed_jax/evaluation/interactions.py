"""Scores of one case and class after each interaction of the protocol 'interactive', and numbers of their curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

CURVES = ("dice", "nsd", "hd95_mm")  # metrics that are computed after each interaction
AREAS = ("dice", "nsd")  # of these, metrics with an area under the curve
THRESHOLDS = (0.80, 0.90, 0.95)  # of Dice


class Interaction(TypedDict):
    """One interaction: number 0 is the initial prompt, number k > 0 the k-th corrective click of each object."""

    interaction: int
    dice: float
    nsd: float  # NaN without surface metrics, as hd95_mm
    hd95_mm: float
    empty: str  # which masks are empty: 'prediction', 'reference', 'both' or ''
    clicks: int | None  # corrective clicks so far on the objects that decide about the class; None: not known
    click: str  # of this interaction on the object that the class is: "z y x inside" or "z y x outside"; "": none
    seconds: float  # wall time of the interaction, all objects of the case together; NaN if nothing was segmented
    compiled: str  # 'yes': XLA compiled during the interaction; "": not known
    initial: str  # settings of `simulated_user.InteractionRules`; "": not known
    click_rule: str
    refinement: str


def interaction_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per case, class, seed and interaction, as in `interactions.csv`.

    Args:
        rows: of `score_cases.evaluate_model` or `result_files.read_results`; those without interactions have none here.
    """
    return [{**row, **interaction} for row in rows for interaction in row.get("interactions") or ()]


def area_under_curve(values: Sequence[float]) -> float:
    """Return the area under a curve over interactions 0 to N by the trapezoid rule, divided by N; NaN if N is 0.

    Args:
        values: of a metric after each interaction, `[N + 1]`.
    """
    if len(values) < 2:
        return math.nan
    inner = np.asarray(values, np.float64)
    return float((inner[:-1] + inner[1:]).sum() / 2 / (len(values) - 1))


def clicks_to(threshold: float, dice: Sequence[float]) -> float:
    """Return the number of the first interaction whose Dice is at least a threshold, or infinity if none is.

    Args:
        threshold: of Dice.
        dice: after each interaction, `[N + 1]`; the initial prompt, number 0, counts as no click.
    """
    return next((float(number) for number, value in enumerate(dice) if value >= threshold), math.inf)
