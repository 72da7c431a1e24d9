"""Lesion detection: connected components of the reference that the prediction touches, and false positives.

A lesion is a connected component (26 neighbours) of the reference. It is found if the prediction touches it. A
component of the prediction that touches no lesion is a false positive. A diameter belongs to a sphere of equal volume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26

DIAMETERS_MM = (0.0, 10.0, 20.0, 30.0, math.inf)  # edges of the diameter bins


class Lesion(TypedDict):
    """One lesion of the reference."""

    lesion: int  # number from 1, in the order of first voxels
    diameter_mm: float
    volume_ml: float
    covered: float  # share of its voxels that are predicted
    found: bool


class LesionCounts(NamedTuple):
    """Counts of one case, as the columns of `cases.csv` name them."""

    lesions_reference: int
    lesions_found: int
    lesions_false_positive: int
    largest_lesion_mm: float  # diameter; NaN without lesions


class DiameterBin(TypedDict):
    """Lesions of one range of diameters; shares and means without a case are None."""

    from_mm: float
    below_mm: float | None  # None: no upper bound
    lesions: int
    found: int
    recall: float | None
    covered: float | None  # mean share of predicted voxels
    cases: int  # cases whose largest lesion is in this range
    dice: float | None  # their mean


class LesionSummary(TypedDict):
    """Lesions of all cases of one class; shares without a case are None."""

    lesions: int
    found: int
    recall: float | None  # over all lesions
    false_positives: int
    false_positives_per_case: float | None
    by_diameter: list[DiameterBin]


def count_lesions(prediction: np.ndarray, reference: np.ndarray, voxel_ml: float) -> tuple[LesionCounts, list[Lesion]]:
    """Count the lesions of one case.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        voxel_ml: volume of a voxel in mL.

    Returns:
        The counts, and each lesion of the reference.
    """
    components, number = ndimage.label(reference, NEIGHBOURS_26)
    sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
    covered = np.bincount(components[prediction], minlength=number + 1)[1:]
    predicted, predicted_number = ndimage.label(prediction, NEIGHBOURS_26)
    touching = np.unique(predicted[reference & prediction])
    lesions = [
        Lesion(
            lesion=n,
            diameter_mm=diameter_mm(size * voxel_ml),
            volume_ml=size * voxel_ml,
            covered=inside / size,
            found=inside > 0,
        )
        for n, (size, inside) in enumerate(zip(sizes.tolist(), covered.tolist(), strict=True), 1)
    ]
    largest = max((lesion["diameter_mm"] for lesion in lesions), default=math.nan)
    counts = LesionCounts(number, int((covered > 0).sum()), predicted_number - len(touching), largest)
    return counts, lesions


def diameter_mm(volume_ml: float) -> float:
    """Return the diameter in mm of the sphere with this volume."""
    return float(2 * (3 * 1000 * volume_ml / (4 * math.pi)) ** (1 / 3))


def summarise_lesions(rows: Sequence[Mapping[str, Any]], lesions: Sequence[Lesion]) -> LesionSummary:
    """Summarise the lesions of the cases of one class.

    Args:
        rows: one per case, with the fields of `LesionCounts` and "dice".
        lesions: all lesions of these cases.
    """
    reference, found, false = (sum(row[name] for row in rows) for name in LesionCounts._fields[:3])
    return LesionSummary(
        lesions=reference,
        found=found,
        recall=found / reference if reference else None,
        false_positives=false,
        false_positives_per_case=false / len(rows) if rows else None,
        by_diameter=[_diameter_bin(rows, lesions, low, high) for low, high in itertools.pairwise(DIAMETERS_MM)],
    )


def _diameter_bin(rows: Sequence[Mapping[str, Any]], lesions: Sequence[Lesion], low: float, high: float) -> DiameterBin:
    inside = [lesion for lesion in lesions if low <= lesion["diameter_mm"] < high]
    dice = [row["dice"] for row in rows if low <= row["largest_lesion_mm"] < high]
    found = sum(lesion["found"] for lesion in inside)
    return DiameterBin(
        from_mm=low,
        below_mm=high if math.isfinite(high) else None,
        lesions=len(inside),
        found=found,
        recall=found / len(inside) if inside else None,
        covered=sum(lesion["covered"] for lesion in inside) / len(inside) if inside else None,
        cases=len(dice),
        dice=sum(dice) / len(dice) if dice else None,
    )
