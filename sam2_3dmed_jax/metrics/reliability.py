"""How far a model's probabilities can be trusted at the boundary: entropy, calibration error and Brier score in a band.

A probability is the sigmoid of an object's own logit on the image's grid; the band is where the reference has voxels of
the other side within some millimetres. Only a checkpoint has probabilities, and a class only if it is a prompted
object: what is left of an organ when its tumour is written over it is none. A confident miss has no entropy, so that
less entropy is no merit by itself; calibration and Brier score count a miss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage, special

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.intensity import restore_logits
from sam2_3dmed_jax.volume.nearest_grid import is_orthogonal

BINS = 15  # of equal width, from 0 to 1
WIDTH_MM = 5.0
COLUMNS = ("band_entropy", "band_ece", "band_brier")
CALIBRATION = COLUMNS[1:]  # lower is better
UNKNOWN = dict.fromkeys(COLUMNS, math.nan)
DEFINITIONS = {
    "band_mm": (
        "half width of the band around the reference's boundary: voxels whose centre is no further than this, in mm, "
        "from the nearest voxel centre on the other side, inside and outside alike; prompted slices are among them"
    ),
    "band_entropy": "mean over the band of -p log2 p - (1 - p) log2 (1 - p), p the sigmoid of the logit; 1: undecided",
    "band_ece": (
        f"expected calibration error over the band: {BINS} bins of p of equal width, sum over bins of their share of "
        "voxels x |mean p - share inside the reference| (Naeini et al. 2015)"
    ),
    "band_brier": "mean over the band of (p - 1 inside, p outside)^2 (Brier 1950)",
}

Box = tuple[slice, slice, slice]
Bins = list[list[float]]  # of each bin: voxels, sum of their p, how many of them lie inside the reference


def check_width(width_mm: float) -> None:
    """Raise `UserError` for a band of no width."""
    if not 0 < width_mm < math.inf:
        raise UserError(f"--band-mm: {width_mm} is no width of a band; give millimetres, such as {WIDTH_MM:g}")


def boundary_band(reference: np.ndarray, spacing: Sequence[float], width_mm: float) -> tuple[Box, np.ndarray]:
    """Where a mask's boundary is near.

    Args:
        reference: bool `[D, H, W]`, not empty.
        spacing: millimetres, (dz, dy, dx), of orthogonal axes.
        width_mm: see `DEFINITIONS`. The image's border is no boundary.

    Returns:
        A box around the band, and the band inside of it, bool.
    """
    (around,) = ndimage.find_objects(reference.astype(np.uint8))
    margin = [math.floor(width_mm * (1 + 1e-6) / step) for step in spacing]
    box = tuple(
        slice(max(side.start - m, 0), min(side.stop + m, n))
        for side, m, n in zip(around, margin, reference.shape, strict=True)
    )
    inside = reference[box]
    # A voxel's distance to the other side, for both sides at once; a box without another side has no boundary.
    if inside.all():
        return box, np.zeros(inside.shape, bool)  # type: ignore[return-value]
    distance = ndimage.distance_transform_edt(inside, spacing) + ndimage.distance_transform_edt(~inside, spacing)
    return box, distance <= width_mm * (1 + 1e-6)  # type: ignore[return-value]


def band_statistics(probability: np.ndarray, inside: np.ndarray) -> tuple[dict[str, float], Bins]:
    """Entropy, calibration error and Brier score of voxels.

    Args:
        probability: `[N]` of lying inside the object, 0 to 1.
        inside: bool `[N]`, whether they do.

    Returns:
        `COLUMNS` (see `DEFINITIONS`; NaN without voxels), and the bins of a reliability diagram.
    """
    if not probability.size:
        return dict(UNKNOWN), []
    p, y = probability.astype(np.float64), inside.astype(np.float64)
    at = np.minimum((p * BINS).astype(int), BINS - 1)
    voxels, sums, hits = (np.bincount(at, weights, BINS) for weights in (None, p, y))
    columns = {
        "band_entropy": float((special.entr(p) + special.entr(1 - p)).mean() / math.log(2)),
        "band_ece": float(np.abs(sums - hits).sum() / p.size),
        "band_brier": float(((p - y) ** 2).mean()),
    }
    return columns, np.stack([voxels, sums, hits], axis=1).tolist()


def object_reliability(logits: np.ndarray | None, reference: np.ndarray, grid: Grid, width_mm: float) -> dict[str, Any]:
    """What a row says of an object's probabilities.

    Args:
        logits: float32 `[D, S/4, S/4]` of the object, or None for an object without probabilities.
        reference: bool `[D, H, W]`.
        grid: of the reference; on a slanted one there is no band.
        width_mm: of the band.

    Returns:
        `COLUMNS`, "band_mm" and "reliability": `Bins`; `UNKNOWN` and no more if there are none.
    """
    if logits is None or not reference.any() or not is_orthogonal(grid):
        return dict(UNKNOWN)
    box, near = boundary_band(reference, grid.spacing, width_mm)
    found = [np.zeros(0, np.float32)]
    for index, plane in zip(range(box[0].start, box[0].stop), near, strict=True):
        found.append(restore_logits(logits[index : index + 1], reference.shape[1:])[0][box[1:]][plane])  # type: ignore[arg-type]
    columns, bins = band_statistics(special.expit(np.concatenate(found)), reference[box][near])
    return {**columns, "band_mm": width_mm, "reliability": bins} if bins else columns


def widths(rows: Sequence[Mapping[str, Any]]) -> set[float]:
    """The half widths, in mm, of the bands in which rows judge probabilities; none: they judge none."""
    found = (row.get("band_mm") for row in rows)
    return {width for width in found if isinstance(width, float) and not math.isnan(width)}


def pooled_bins(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """The reliability diagram of a class: voxels of all cases (and seeds) together, bin by bin; []: none is known."""
    known = [row["reliability"] for row in rows if row.get("reliability")]
    if not known:
        return []
    return [
        {
            "from": at / BINS,
            "to": (at + 1) / BINS,
            "voxels": int(voxels),
            "probability": sums / voxels if voxels else None,
            "inside": hits / voxels if voxels else None,
        }
        for at, (voxels, sums, hits) in enumerate(np.sum(known, axis=0).tolist())
    ]
