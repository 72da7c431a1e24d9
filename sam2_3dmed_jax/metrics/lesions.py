"""Tumours counted: which lesions were found, and what was found that is none.

A lesion is a connected component (26 neighbours) of the reference. It is found if the prediction touches it; a
component of the prediction that touches no lesion is a false positive. Diameters are those of spheres of equal volume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26

Lesion = dict[str, Any]

COUNTS = ("lesions_reference", "lesions_found", "lesions_false_positive", "largest_lesion_mm")
DIAMETERS_MM = (0.0, 10.0, 20.0, 30.0, math.inf)  # edges of the bins of results by diameter


def count_lesions(
    prediction: np.ndarray, reference: np.ndarray, voxel_ml: float
) -> tuple[dict[str, Any], list[Lesion]]:
    """Counts of a case, and its lesions.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        voxel_ml: millilitres a voxel.

    Returns:
        The columns `COUNTS`, and of each lesion in the order of its first voxel {"lesion": number from 1,
        "diameter_mm", "volume_ml", "covered": share of its voxels that were predicted, "found": bool}.
    """
    components, number = ndimage.label(reference, NEIGHBOURS_26)
    sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
    covered = np.bincount(components[prediction], minlength=number + 1)[1:]
    predicted, found = ndimage.label(prediction, NEIGHBOURS_26)
    touching = np.unique(predicted[reference & prediction])
    lesions = [
        {
            "lesion": n,
            "diameter_mm": diameter_mm(size * voxel_ml),
            "volume_ml": size * voxel_ml,
            "covered": inside / size,
            "found": inside > 0,
        }
        for n, (size, inside) in enumerate(zip(sizes.tolist(), covered.tolist(), strict=True), 1)
    ]
    counts = (number, int((covered > 0).sum()), found - len(touching))
    largest = max((lesion["diameter_mm"] for lesion in lesions), default=math.nan)
    return dict(zip(COUNTS, (*counts, largest), strict=True)), lesions


def diameter_mm(volume_ml: float) -> float:
    """Of the sphere with this volume."""
    return 2 * (3 * 1000 * volume_ml / (4 * math.pi)) ** (1 / 3)


def summarise_lesions(rows: Sequence[dict[str, Any]], lesions: Sequence[Lesion]) -> dict[str, Any]:
    """Over the cases of one class.

    Args:
        rows: of the class, with `COUNTS`, "dice" and "case".
        lesions: of the same cases.

    Returns:
        {"lesions", "found", "recall": over all lesions, "false_positives", "false_positives_per_case", "by_diameter":
        for each bin {"from_mm", "below_mm": None for the last, "lesions", "found", "recall", "covered": mean share,
        "cases": whose largest lesion is of the bin, "dice": their mean}}; what has no value is None.
    """
    reference, found, false = (sum(row[name] for row in rows) for name in COUNTS[:3])
    bins = []
    for low, high in itertools.pairwise(DIAMETERS_MM):
        own = [lesion for lesion in lesions if low <= lesion["diameter_mm"] < high]
        dice = [row["dice"] for row in rows if low <= row["largest_lesion_mm"] < high]
        hit = sum(lesion["found"] for lesion in own)
        bins.append(
            {
                "from_mm": low,
                "below_mm": high if math.isfinite(high) else None,
                "lesions": len(own),
                "found": hit,
                "recall": hit / len(own) if own else None,
                "covered": sum(lesion["covered"] for lesion in own) / len(own) if own else None,
                "cases": len(dice),
                "dice": sum(dice) / len(dice) if dice else None,
            }
        )
    return {
        "lesions": reference,
        "found": found,
        "recall": found / reference if reference else None,
        "false_positives": false,
        "false_positives_per_case": false / len(rows) if rows else None,
        "by_diameter": bins,
    }
