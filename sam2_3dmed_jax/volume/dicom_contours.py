"""DICOM structure sets (RTSTRUCT): closed planar contours, filled on the slices of an image.

A voxel is inside where its centre is inside an odd number of the contours of its slice, so that a contour within
another one is a hole (PS3.3, C.8.8.6); centres on a contour are inside.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.volume.dicom_frame import reading
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS, Grid
from sam2_3dmed_jax.volume.label_layers import Block, LabelFile, LabelLayers, LayerPainter

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_ON_EDGE = 1e-3  # voxels: contours that were traced through voxel centres hit them up to rounding
_PLANAR = 0.25  # slices: how far the points of a contour may be from one plane parallel to the slices
_SPARSE = 1.5  # slices: contours further apart than this would leave slices empty
Contours = Mapping[int, Sequence[np.ndarray]]  # `[N, 3]` RAS mm each, by the number of the structure


def open_contours(path: Path, header: Any) -> LabelFile:
    """Return the structures of a structure set; their labels are their numbers. All of them may be empty.

    Raises:
        UserError: a contour is damaged, no structure has closed contours, or a structure is numbered 0.
    """
    with reading(path):
        names = {
            int(item.ROINumber): str(item.get("ROIName") or "") for item in header.get("StructureSetROISequence") or ()
        }
        contours: dict[int, list[np.ndarray]] = {}
        is_empty = bool(names)
        for structure in header.get("ROIContourSequence") or ():
            number = int(structure.ReferencedROINumber)
            for contour in structure.get("ContourSequence") or ():
                is_empty = False
                if contour.get("ContourGeometricType") in _CLOSED:
                    contours.setdefault(number, []).append(_points(path, number, contour))
    if not contours and not is_empty:
        raise UserError(f"{path} has no closed contours, expected a structure that was drawn on slices: export one")
    if min(contours, default=1) < 1:
        raise UserError(f"{path} has a structure with the ROINumber {min(contours)}, expected 1 or more: renumber it")
    names = {number: names.get(number, "") for number in sorted(contours)}
    return LabelFile(str(path), None, True, lambda _: None, functools.partial(_read, str(path), contours, names), names)


def fill(shape: tuple[int, int], polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return the pixels whose centres are inside an odd number of polygons, or on the edge of one.

    Args:
        shape: (columns, rows) of the image.
        polygons: `[N, 2]` (column, row) each; integers are centres of pixels. May be partly outside the image.

    Returns:
        Bool array of `shape`.
    """
    columns, rows = shape
    toggles = np.zeros((columns + 1, rows), bool)  # every crossing inverts all pixels after it
    spans = np.zeros((columns + 1, rows), np.int32)  # of edges along a row: 1 where one starts, -1 after its end
    edge = np.zeros(shape, bool)
    for polygon in polygons:
        snapped = np.where(np.abs(polygon - np.rint(polygon)) < _ON_EDGE, np.rint(polygon), polygon)
        (x0, y0), (x1, y1) = snapped.T, np.roll(snapped, -1, axis=0).T
        low, high = np.minimum(y0, y1), np.maximum(y0, y1)
        along = (low == high) & (y0 == np.rint(y0)) & (y0 >= 0) & (y0 < rows)
        start = np.ceil(np.minimum(x0, x1)).clip(0, columns).astype(int)
        stop = (np.floor(np.maximum(x0, x1)) + 1).clip(0, columns).astype(int)
        along &= start < stop
        np.add.at(spans, (start[along], y0[along].astype(int)), 1)
        np.add.at(spans, (stop[along], y0[along].astype(int)), -1)
        first = np.ceil(low).clip(0, rows).astype(int)
        count = (np.floor(high).clip(-1, rows - 1).astype(int) + 1 - first).clip(0)
        count[low == high] = 0
        number = np.repeat(np.arange(len(polygon)), count)  # of the edge that crosses a row
        row = np.arange(count.sum()) - np.repeat(count.cumsum() - count - first, count)
        crossing = x0[number] + (row - y0[number]) * (x1 - x0)[number] / (y1 - y0)[number]
        nearest = np.rint(crossing)
        hit = (np.abs(crossing - nearest) < _ON_EDGE) & (nearest >= 0) & (nearest < columns)
        edge[nearest[hit].astype(int), row[hit]] = True
        crosses = row < high[number]  # the upper end of an edge belongs to the next edge
        place = np.ceil(crossing[crosses]).clip(0, columns).astype(int)
        np.logical_xor.at(toggles, (place, row[crosses]), True)
    inside = np.logical_xor.accumulate(toggles, axis=0) | (spans.cumsum(axis=0) > 0)
    return np.asarray(inside[:-1] | edge)


def _points(path: Path, number: int, contour: Any) -> np.ndarray:
    try:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
    except (TypeError, ValueError):
        points = np.full((1, 3), np.nan)
    if not len(points) or not np.isfinite(points).all():
        raise UserError(
            f"{path} has a contour of structure {number} that is not a list of x, y and z in mm: export it again"
        )
    return points @ LPS_TO_RAS[:3, :3]


def _read(path: str, contours: Contours, names: Mapping[int, str], grid: Grid) -> LabelLayers:
    painter = LayerPainter(grid, path)
    if not contours:
        return painter.result()
    to_grid = np.linalg.inv(grid.affine)
    placed = {
        number: [points @ to_grid[:3, :3].T + to_grid[:3, 3] for points in parts] for number, parts in contours.items()
    }
    extents = np.array([np.ptp(points, axis=0) for parts in placed.values() for points in parts])
    axis = int(extents.max(0).argmin())
    thickest = float(extents[:, axis].max())
    if thickest > _PLANAR:
        raise UserError(
            f"{path} has contours that are not parallel to the slices of {grid.source or 'the image'}, from which they "
            f"deviate by {thickest:.3g} slices: give the image that they were drawn on"
        )
    levels = np.unique(np.round([points[:, axis].mean() for parts in placed.values() for points in parts], 2))
    steps = np.diff(levels)
    if len(steps) and float(np.median(steps)) > _SPARSE:
        raise UserError(
            f"{path} has contours on every {np.median(steps):.3g} slices of {grid.source or 'the image'}, which would "
            "leave the slices between them empty: give the image that they were drawn on"
        )
    for number in sorted(placed):
        parts = list(_slices(placed[number], axis, grid.shape))
        if not parts:
            name = f" ({names[number]})" if names.get(number) else ""
            raise UserError(
                f"{path} has structure {number}{name} outside of {grid.source or 'the image'}, expected contours of "
                f"that image (its structures: {listed([f'{n} {name}' for n, name in names.items()])})"
            )
        painter.add(number, parts)
    return painter.result()


def _slices(parts: Sequence[np.ndarray], axis: int, shape: tuple[int, int, int]) -> Iterator[tuple[Block, np.ndarray]]:
    """Yield each slice of a structure that is in the image: its block, and the mask of the block.

    A contour between slices belongs to the nearest one. Where several planes are nearest to one slice, the one that is
    closest to it counts, since contours of different planes must not cut holes into each other.
    """
    planes: dict[int, dict[float, list[np.ndarray]]] = {}
    for points in parts:
        level = float(points[:, axis].mean())
        nearest = int(np.rint(level))
        if 0 <= nearest < shape[axis]:
            offset = round(level - nearest, 2)
            planes.setdefault(nearest, {}).setdefault(offset, []).append(np.delete(points, axis, axis=1))
    others = [other for other in range(3) if other != axis]
    for nearest, by_offset in planes.items():
        polygons = by_offset[min(by_offset, key=abs)]
        # Only the rectangle around the contours is filled.
        low = np.floor(np.min([polygon.min(0) for polygon in polygons], axis=0)).astype(int).clip(0)
        high = np.ceil(np.max([polygon.max(0) for polygon in polygons], axis=0)).astype(int) + 1
        high = np.minimum(high, [shape[other] for other in others])
        if (low >= high).any():
            continue
        columns, rows = (high - low).tolist()
        mask = fill((columns, rows), [polygon - low for polygon in polygons])
        if mask.any():
            block = [slice(nearest, nearest + 1)] * 3
            for other, start, stop in zip(others, low.tolist(), high.tolist(), strict=True):
                block[other] = slice(start, stop)
            yield (block[0], block[1], block[2]), np.expand_dims(mask, axis)
