"""From surface elements with distances and weights to NSD, HD95, HD and ASSD, as three packages define them.

Float64 NumPy throughout. Distances are computed from steps in voxels with the same operations in the same order as
SciPy's distance transform computes them, so that they fall on the same side of a tolerance as the references'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.metrics.nearest_surface import Elements

_RANKING = 1e-6  # relative; the search ranks squared distances in float32


class Surface(NamedTuple):
    """The elements of one mask's surface."""

    distance: np.ndarray  # float64 [E], mm to the nearest element of the other surface
    weight: np.ndarray  # float64 [E], the element's area in mm2, or 1
    within: np.ndarray  # bool [E], not further than the tolerance


def measure(
    pair: tuple[Elements, Elements],
    shape: tuple[int, ...],
    spacing: Sequence[float],
    tolerance: float,
    weights: np.ndarray,
    precision: type[np.floating],
) -> tuple[Surface, Surface]:
    """Distances, weights and nearness of both surfaces.

    Args:
        pair: elements of either mask.
        shape: of the box in which they lie.
        spacing: millimetres between voxels, (dz, dy, dx).
        tolerance: mm; a distance equal to it is within.
        weights: float64 `[256]`, the weight of an element by its code.
        precision: in which a distance is compared with the tolerance: with 0.1 mm between voxels, three of them are
            further apart than 0.3 mm for float64 (`surface-distance`) and not for float32 (MONAI).
    """
    size = np.array(spacing, np.float64)[:, None]
    surfaces = []
    for own, other in (pair, pair[::-1]):
        distance = _length(own.offset * size)
        within = _within(distance, tolerance, precision)
        # Another element may be nearer by a rounding, and so within: 3 voxels along one axis, or (2, 2, 1).
        edge = np.flatnonzero(~within & (distance <= tolerance * (1 + _RANKING)))
        if edge.size:
            within[edge] = _reaches(own.at[edge], other.at, shape, size, tolerance, precision)
        surfaces.append(Surface(distance, weights[own.code], within))
    return surfaces[0], surfaces[1]


def area_weighted(one: Surface, other: Surface) -> dict[str, float]:
    """As DeepMind's `surface-distance` (Nikolov et al. 2018, arXiv:1809.04430), in mm but for `nsd`.

    `nsd` is the share of both surfaces' area within the tolerance, `hd95_mm` the greater of both surfaces' weighted
    95th percentiles, `hd_mm` the greatest distance. `assd_mm` is the mean over both surfaces together, by area; the
    package gives each surface's mean alone.
    """
    both = (one, other)
    total = one.weight.sum() + other.weight.sum()
    return {
        "nsd": float(sum(s.weight[s.within].sum() for s in both) / total),
        "hd95_mm": float(max(_weighted_percentile(s, 95) for s in both)),
        "hd_mm": float(max(s.distance.max() for s in both)),
        "assd_mm": float(sum((s.distance * s.weight).sum() for s in both) / total),
    }


def counted(one: Surface, other: Surface, pooled: bool) -> dict[str, float]:
    """As MONAI (its defaults, no subvoxels) and, `pooled`, MedPy: a border voxel counts as any other.

    `hd95_mm` interpolates between ranks; it is the percentile of all distances together if `pooled`, and otherwise the
    greater of both surfaces'. MedPy has no `nsd`: MONAI's is given, over the same voxels.
    """
    both = (one, other)
    distances = [s.distance for s in both]
    all_distances = np.concatenate(distances)
    samples = [all_distances] if pooled else distances
    return {
        "nsd": float(np.concatenate([s.within for s in both]).mean()),
        "hd95_mm": float(max(np.percentile(sample, 95) for sample in samples)),
        "hd_mm": float(all_distances.max()),
        "assd_mm": float(all_distances.mean()),
    }


def _length(vectors: np.ndarray) -> np.ndarray:
    z, y, x = vectors
    return np.asarray(np.sqrt(z * z + y * y + x * x))


def _weighted_percentile(surface: Surface, percent: float) -> float:
    """The distance of the element at which the share of the area, nearest elements first, reaches `percent`."""
    order = np.lexsort((surface.weight, surface.distance))
    share = np.cumsum(surface.weight[order]) / surface.weight.sum()
    rank = min(int(np.searchsorted(share, percent / 100)), len(order) - 1)
    return float(surface.distance[order[rank]])


def _within(distance: np.ndarray, tolerance: float, precision: type[np.floating]) -> np.ndarray:
    return np.asarray(distance.astype(precision) <= precision(tolerance))


def _reaches(
    index: np.ndarray,
    others: np.ndarray,
    shape: tuple[int, ...],
    size: np.ndarray,
    tolerance: float,
    precision: type[np.floating],
) -> np.ndarray:
    """Whether any of `others` lies at a step whose length is, but for roundings, the tolerance, and within it."""
    most = [min(extent - 1, int(tolerance / step) + 1) for extent, step in zip(shape, size[:, 0], strict=True)]
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij")).reshape(3, -1)
    length = _length(steps * size)
    steps = steps[:, _within(length, tolerance, precision) & (length >= tolerance * (1 - 2 * _RANKING))]
    target = np.stack(np.unravel_index(index, shape))[:, :, None] + steps[:, None, :]
    inside = ((target >= 0) & (target < np.reshape(shape, (3, 1, 1)))).all(0)
    flat = np.ravel_multi_index(tuple(target), shape, mode="clip")
    return np.asarray((inside & np.isin(flat, others)).any(-1))
