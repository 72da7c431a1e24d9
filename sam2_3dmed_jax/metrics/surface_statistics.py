"""NSD, HD95, HD and ASSD from surface distances and weights, as three packages define them.

Everything is float64 NumPy. Distances are computed from offsets in voxels with the same operations in the same order
as in SciPy's distance transform, so that they fall on the same side of a tolerance as in the reference packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.metrics.nearest_surface import SurfaceElements

_RANKING_ERROR = 1e-6  # relative; the search ranks squared distances in float32


class SurfaceDistances(NamedTuple):
    """Distances from the elements of one mask's surface to the other surface."""

    distance: np.ndarray  # float64 [E], mm to the nearest element of the other surface
    weight: np.ndarray  # float64 [E], the element's area in mm2, or 1
    within: np.ndarray  # bool [E], not further than the tolerance


def surface_distances(
    surfaces: tuple[SurfaceElements, SurfaceElements],
    shape: tuple[int, ...],
    spacing: Sequence[float],
    tolerance: float,
    weights: np.ndarray,
    precision: type[np.floating],
) -> tuple[SurfaceDistances, SurfaceDistances]:
    """Return distances and weights of the elements of both surfaces.

    Args:
        surfaces: elements of each mask, from `nearest_surface_elements`.
        shape: of the box that holds them.
        spacing: millimetres between voxels, (dz, dy, dx).
        tolerance: mm; a distance equal to the tolerance is within it.
        weights: float64 `[256]`, the weight of an element by its code.
        precision: dtype in which distances are compared with the tolerance. For example, with 0.1 mm between voxels,
            three voxels are further apart than 0.3 mm in float64 (`surface-distance`), but not in float32 (MONAI).
    """
    step = np.array(spacing, np.float64)[:, None]
    result = []
    for source, target in (surfaces, surfaces[::-1]):
        distance = _length(source.offset * step)
        within = _is_within(distance, tolerance, precision)
        # Another element may be nearer by a rounding error, and so within: 3 voxels along one axis, or (2, 2, 1).
        borderline = np.flatnonzero(~within & (distance <= tolerance * (1 + _RANKING_ERROR)))
        if borderline.size:
            within[borderline] = _has_element_within(
                source.position[borderline], target.position, shape, step, tolerance, precision
            )
        result.append(SurfaceDistances(distance, weights[source.code], within))
    return result[0], result[1]


def area_weighted_metrics(one: SurfaceDistances, other: SurfaceDistances) -> dict[str, float]:
    """Return metrics weighted by area, as DeepMind's `surface-distance` (Nikolov et al. 2018, arXiv:1809.04430).

    `nsd` is the share of both surfaces' area within the tolerance, `hd95_mm` the greater of both surfaces' weighted
    95th percentiles, `hd_mm` the greatest distance. `assd_mm` is the mean over both surfaces together, by area; the
    package returns the mean of each surface separately.
    """
    both = (one, other)
    total = one.weight.sum() + other.weight.sum()
    return {
        "nsd": float(sum(s.weight[s.within].sum() for s in both) / total),
        "hd95_mm": float(max(_weighted_percentile(s, 95) for s in both)),
        "hd_mm": float(max(s.distance.max() for s in both)),
        "assd_mm": float(sum((s.distance * s.weight).sum() for s in both) / total),
    }


def unweighted_metrics(one: SurfaceDistances, other: SurfaceDistances, pooled: bool) -> dict[str, float]:
    """Return metrics in which all border voxels count equally, as MONAI (its defaults) or MedPy (`pooled`).

    `hd95_mm` interpolates between ranks. It is the percentile of the distances of both surfaces together if `pooled`,
    otherwise the greater of both surfaces' percentiles. MedPy has no `nsd`: MONAI's definition is used, over the same
    voxels.
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


def _weighted_percentile(surface: SurfaceDistances, percent: float) -> float:
    """Return the distance of the element at which the share of the area, by ascending distance, reaches `percent`."""
    order = np.lexsort((surface.weight, surface.distance))
    share = np.cumsum(surface.weight[order]) / surface.weight.sum()
    rank = min(int(np.searchsorted(share, percent / 100)), len(order) - 1)
    return float(surface.distance[order[rank]])


def _is_within(distance: np.ndarray, tolerance: float, precision: type[np.floating]) -> np.ndarray:
    return np.asarray(distance.astype(precision) <= precision(tolerance))


def _has_element_within(
    index: np.ndarray,
    targets: np.ndarray,
    shape: tuple[int, ...],
    step: np.ndarray,
    tolerance: float,
    precision: type[np.floating],
) -> np.ndarray:
    """Return whether a target exists at an offset as long as the tolerance, but for rounding, and within it.

    Args:
        index: int64 `[E]`, flat indices of elements.
        targets: int64, flat indices of the elements of the other surface.
        shape: of the box.
        step: float64 `[3, 1]`, mm between voxels.
        tolerance: mm.
        precision: dtype of the comparison.

    Returns:
        bool `[E]`.
    """
    furthest = [min(size - 1, int(tolerance / mm) + 1) for size, mm in zip(shape, step[:, 0], strict=True)]
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in furthest), indexing="ij")).reshape(3, -1)
    length = _length(offsets * step)
    offsets = offsets[:, _is_within(length, tolerance, precision) & (length >= tolerance * (1 - 2 * _RANKING_ERROR))]
    ends = np.stack(np.unravel_index(index, shape))[:, :, None] + offsets[:, None, :]
    inside = ((ends >= 0) & (ends < np.reshape(shape, (3, 1, 1)))).all(0)
    flat = np.ravel_multi_index(tuple(ends), shape, mode="clip")
    return np.asarray((inside & np.isin(flat, targets)).any(-1))
