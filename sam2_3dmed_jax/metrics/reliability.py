"""Reliability of probabilities near the boundary: entropy, calibration error and Brier score in a band around it.

A probability is the sigmoid of an object's logit on the image's grid. The band holds the voxels within some millimetres
of a reference voxel of the other side. Files of label maps have no probabilities, and a class has some only if it is a
prompted object: an organ minus the tumour that is written over it is not. A confident miss has no entropy, so low
entropy alone is not a merit; calibration error and Brier score count a miss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from scipy import ndimage, optimize, special

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.nearest_grid import is_orthogonal
from sam2_3dmed_jax.volume.zoom import Logits, logits_on_slice

BINS = 15  # bins of probability, of equal width, from 0 to 1
WIDTH_MM = 5.0
TEMPERATURES = (0.05, 20.0)  # range of fitted temperatures
COLUMNS = ("band_entropy", "band_ece", "band_brier")
UNKNOWN = dict.fromkeys(COLUMNS, math.nan)

BoxSlices = tuple[slice, slice, slice]
Bins = list[list[float]]  # per bin: voxels, sum of their probabilities, number of them inside the reference


class ObjectReliability(NamedTuple):
    """Reliability of the probabilities of one object in one case."""

    metrics: dict[str, float]  # the columns `COLUMNS`; NaN without probabilities
    bins: Bins  # of a reliability diagram; [] without probabilities


# The key "from" is a keyword of Python, which the class syntax cannot have.
PooledBin = TypedDict(
    "PooledBin",
    {"from": float, "to": float, "voxels": int, "probability": float | None, "inside": float | None},
)


def check_width(width_mm: float) -> None:
    """Check the half width of the band.

    Raises:
        UserError: it is not a positive number.
    """
    if not 0 < width_mm < math.inf:
        raise UserError(f"--band-mm: {width_mm} is not the width of a band; give millimetres, such as {WIDTH_MM:g}")


def boundary_band(reference: np.ndarray, spacing: Sequence[float], width_mm: float) -> tuple[BoxSlices, np.ndarray]:
    """Return the voxels near the boundary of a mask; the border of the image is not a boundary.

    Args:
        reference: bool `[D, H, W]`, not empty.
        spacing: millimetres, (dz, dy, dx), of orthogonal axes.
        width_mm: half width of the band, between voxel centres of the two sides.

    Returns:
        A box around the band, and bool of the shape of the box: True in the band.
    """
    (around,) = ndimage.find_objects(reference.astype(np.uint8))
    margin = [math.floor(width_mm * (1 + 1e-6) / step) for step in spacing]
    box = tuple(
        slice(max(side.start - m, 0), min(side.stop + m, n))
        for side, m, n in zip(around, margin, reference.shape, strict=True)
    )
    inside = reference[box]
    if inside.all():  # a box without voxels outside the mask has no boundary
        return box, np.zeros(inside.shape, bool)  # type: ignore[return-value]
    # The sum is a voxel's distance to the other side, for both sides at once: one of the two terms is 0.
    distance = ndimage.distance_transform_edt(inside, spacing) + ndimage.distance_transform_edt(~inside, spacing)
    return box, distance <= width_mm * (1 + 1e-6)  # type: ignore[return-value]


def band_statistics(probability: np.ndarray, inside: np.ndarray) -> ObjectReliability:
    """Return entropy, calibration error, Brier score and the bins of a reliability diagram for some voxels.

    Entropy is the mean of -p log2 p - (1 - p) log2 (1 - p), in bits. The calibration error is the expected calibration
    error (Naeini et al. 2015). The Brier score (Brier 1950) is the mean squared difference of p and 0 or 1.

    Args:
        probability: `[N]` of being inside the object, 0 to 1.
        inside: bool `[N]`, whether the voxels are inside the reference.
    """
    if not probability.size:
        return ObjectReliability(dict(UNKNOWN), [])
    p, y = probability.astype(np.float64), inside.astype(np.float64)
    bin_of = np.minimum((p * BINS).astype(int), BINS - 1)
    voxels, sums, hits = (np.bincount(bin_of, weights, BINS) for weights in (None, p, y))
    metrics = {
        "band_entropy": float((special.entr(p) + special.entr(1 - p)).mean() / math.log(2)),
        "band_ece": float(np.abs(sums - hits).sum() / p.size),
        "band_brier": float(((p - y) ** 2).mean()),
    }
    return ObjectReliability(metrics, np.stack([voxels, sums, hits], axis=1).tolist())


def object_reliability(logits: Logits | None, reference: np.ndarray, grid: Grid, width_mm: float) -> ObjectReliability:
    """Return the reliability of an object's probabilities in the band around its reference.

    Args:
        logits: float32 `[D, S/4, S/4]` of the object, also in a region, or None if its probabilities are unknown.
        reference: bool `[D, H, W]`.
        grid: of the reference; without orthogonal axes the band is not defined.
        width_mm: half width of the band.

    Returns:
        NaN and no bins if the logits are unknown, the reference is empty, or the band is not defined or has no voxels.
    """
    if logits is None or not reference.any() or not is_orthogonal(grid):
        return ObjectReliability(dict(UNKNOWN), [])
    box, band = boundary_band(reference, grid.spacing, width_mm)
    values, (_, height, width) = [np.zeros(0, np.float32)], reference.shape
    for index, plane in zip(range(box[0].start, box[0].stop), band, strict=True):
        # One slice at a time: logits of a whole volume on the image's grid would take much memory.
        restored = logits_on_slice(logits, index, (height, width))
        values.append(restored[box[1:]][plane])
    return band_statistics(special.expit(np.concatenate(values)), reference[box][band])


def fit_temperature(logits: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float | None:
    """Return the temperature T for which sigmoid(logit / T) has the smallest negative log likelihood.

    Temperature scaling (Guo et al. 2017, "On calibration of modern neural networks"): T > 1 makes probabilities less
    certain, T < 1 more certain, and no mask changes.

    Args:
        logits: `[N]`, of voxels or of the bins of a histogram.
        inside: `[N]`, number of voxels with this logit inside the reference.
        outside: `[N]`, number of voxels with this logit outside of it.

    Returns:
        T, in the range `TEMPERATURES`; None if all voxels are on one side, or there are none.
    """
    if not inside.sum() or not outside.sum():
        return None

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float((inside * np.logaddexp(0, -scaled) + outside * np.logaddexp(0, scaled)).sum())

    bounds = math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])
    return math.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def band_widths(rows: Sequence[Mapping[str, Any]]) -> set[float]:
    """Return the half widths, in mm, of the bands that rows were scored in; empty without probabilities."""
    widths = (row.get("band_mm") for row in rows)
    return {width for width in widths if isinstance(width, float) and not math.isnan(width)}


def pooled_bins(rows: Sequence[Mapping[str, Any]]) -> list[PooledBin]:
    """Return the reliability diagram of a class: the voxels of all cases and seeds together, bin by bin.

    Args:
        rows: with "reliability": `Bins`, where it is known. [] is returned if it is known in no row.
    """
    known = [row["reliability"] for row in rows if row.get("reliability")]
    if not known:
        return []
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "voxels": int(voxels),
            "probability": sums / voxels if voxels else None,
            "inside": hits / voxels if voxels else None,
        }
        for number, (voxels, sums, hits) in enumerate(np.sum(known, axis=0).tolist())
    ]
