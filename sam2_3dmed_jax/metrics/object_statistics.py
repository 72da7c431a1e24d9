"""Size, position and intensities of one object in an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

Point = tuple[float, float, float]


@dataclass(frozen=True)
class ObjectStatistics:
    """Statistics of a mask; positions are (x, y, z) in RAS millimetres. Without a voxel, all but the size is None."""

    volume_ml: float
    slices: int  # with a voxel
    mean: float | None = None  # of the intensities
    sd: float | None = None  # of the intensities, over all voxels
    min: float | None = None
    max: float | None = None
    box_min_mm: Point | None = None  # box around the voxels along x, y and z, with their whole extent
    box_max_mm: Point | None = None
    centroid_mm: Point | None = None
    axial_diameter_mm: float | None = None  # the longest on one slice, between points halfway to voxels outside


def object_statistics(mask: np.ndarray, values: np.ndarray, affine: np.ndarray) -> ObjectStatistics:
    """Return the statistics of an object.

    Args:
        mask: bool `[D, H, W]`.
        values: intensities `[D, H, W]`.
        affine: `[4, 4]`, index (d, h, w, 1) to RAS millimetres.
    """
    places = np.argwhere(mask)
    axes, origin = affine[:3, :3], affine[:3, 3]
    volume_ml = len(places) * abs(float(np.linalg.det(axes))) / 1000
    if not len(places):
        return ObjectStatistics(volume_ml, 0)
    inside = values[mask].astype(np.float64)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    boxed = mask[tuple(map(slice, low, high))]
    positions = places @ axes.T + origin
    half_voxel = np.abs(axes).sum(axis=1) / 2
    return ObjectStatistics(
        volume_ml,
        slices=len(np.unique(places[:, 0])),
        mean=float(inside.mean()),
        sd=float(inside.std()),
        min=float(inside.min()),
        max=float(inside.max()),
        box_min_mm=_point(positions.min(axis=0) - half_voxel),
        box_max_mm=_point(positions.max(axis=0) + half_voxel),
        centroid_mm=_point(positions.mean(axis=0)),
        axial_diameter_mm=max(_diameter(plane, axes[:, 1:]) for plane in boxed if plane.any()),
    )


def _diameter(plane: np.ndarray, axes: np.ndarray) -> float:
    """Return the longest diameter of a mask `[H, W]`; `axes` `[3, 2]` are the steps of a row and a column in mm."""
    rows = np.flatnonzero(plane.any(axis=1))
    first, last = plane[rows].argmax(axis=1), plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.c_[rows, first], np.c_[rows, last]])  # the hull needs no other voxel of a row
    points = np.concatenate([ends + step for step in ((0, 0.5), (0, -0.5), (0.5, 0), (-0.5, 0))])
    return float(pdist(points[ConvexHull(points).vertices] @ axes.T).max())


def _point(position: np.ndarray) -> Point:
    x, y, z = position.tolist()
    return x, y, z
