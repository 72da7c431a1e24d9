"""Dice by distance from the nearest prompted slice: how a segmentation decays along the propagation.

Distances are along the slice axis, in mm, between slice centres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

# Upper edges of the bins, which contain them. The first bin has the prompted slices, the last one has no upper edge.
EDGES_MM = (0.0, 10.0, 20.0, 40.0, 80.0)
BINS_MM = tuple(zip((0.0, *EDGES_MM), (*EDGES_MM, math.inf), strict=True))  # (lower, upper); (0, 0): prompted slices
_DECIMALS = 3  # headers store spacings as float32, so that a slice at 10 mm may be at 10.0000002 mm

Distances = list[list[float]]  # per bin: slices that hold the prediction or the reference, and their Dice or NaN


class DistanceBin(TypedDict):
    """Dice of one bin of distance over the cases of a class."""

    from_mm: float
    to_mm: float | None  # None: without limit
    slices: int  # of all cases and seeds
    cases: int  # with slices in the bin
    dice: float | None  # mean over these cases, a case being the mean over its seeds


def dice_by_distance(
    prediction: np.ndarray, reference: np.ndarray, prompted_slices: Sequence[int], slice_spacing: float
) -> Distances:
    """Return the Dice of the slices at each distance from the nearest prompted slice.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        prompted_slices: indices of slices with a prompt.
        slice_spacing: dz, millimetres between the centres of neighbouring slices.

    Returns:
        [slices, Dice] for each of `BINS_MM`: the number of slices that hold the prediction or the reference, and the
        Dice of all of them together, NaN without a slice. [] without prompted slices or if both masks are empty.
    """
    if not len(prompted_slices):
        return []
    shared, *both = (np.count_nonzero(mask, axis=(1, 2)) for mask in (prediction & reference, prediction, reference))
    sizes = both[0] + both[1]
    if not sizes.any():
        return []
    steps = np.abs(np.arange(len(sizes))[:, None] - np.asarray(prompted_slices)).min(1)
    # Edge i is the first one that is not smaller than the distance.
    bin_of = np.searchsorted(EDGES_MM, np.round(steps * slice_spacing, _DECIMALS))
    bins: Distances = []
    for number in range(len(BINS_MM)):
        chosen = (bin_of == number) & (sizes > 0)
        slices = int(chosen.sum())
        bins.append([slices, 2 * int(shared[chosen].sum()) / int(sizes[chosen].sum()) if slices else math.nan])
    return bins


def mean_by_distance(rows: Sequence[Mapping[str, Any]]) -> list[DistanceBin]:
    """Return the mean Dice of a class by distance from the prompted slices.

    Args:
        rows: of one class, with "by_distance": `Distances`, where prompts are known. [] is returned if no row has it.
    """
    known = [row for row in rows if row.get("by_distance")]
    bins: list[DistanceBin] = []
    for number, (low, high) in enumerate(BINS_MM if known else ()):
        of_case: dict[str, list[float]] = {}
        for row in known:
            slices, dice = row["by_distance"][number]
            if slices:
                of_case.setdefault(row["case"], []).append(dice)
        means = [sum(values) / len(values) for _, values in sorted(of_case.items())]
        bins.append(
            {
                "from_mm": low,
                "to_mm": None if math.isinf(high) else high,
                "slices": sum(int(row["by_distance"][number][0]) for row in known),
                "cases": len(means),
                "dice": math.fsum(means) / len(means) if means else None,
            }
        )
    return bins
