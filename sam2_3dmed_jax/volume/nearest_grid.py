"""Nearest-neighbour resampling of label maps to another grid, on request only, because it moves surfaces.

Surface metrics need orthogonal axes. A slanted grid (gantry tilt) is replaced by an orthogonal grid around it, whose
spacing equals the distances between its planes, rows and columns, so that no slice is skipped.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.image_file import check_size

_SLANT = 1e-3  # largest cosine between orthogonal axes: half a voxel over 500, the rounding of headers


def is_orthogonal(grid: Grid) -> bool:
    """Return whether the axes are at right angles."""
    edges = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    return bool(np.abs(edges.T @ edges - np.eye(3)).max() <= _SLANT)


def check_orthogonal(grid: Grid) -> None:
    """Refuse a grid on which surfaces cannot be measured.

    Raises:
        UserError: its axes are not orthogonal.
    """
    if not is_orthogonal(grid):
        raise UserError(
            f"{grid.source or 'the image'} has axes that are not orthogonal, on which surfaces are not measured; give "
            "--resample to measure on an orthogonal grid around it, or --metrics overlap to leave surfaces out"
        )


def orthogonal_grid(grid: Grid) -> Grid:
    """Return an orthogonal grid that contains all voxels of a slanted one.

    Its last two axes span the plane of the slices, and the second-last axis is kept. Its spacings are the distances
    between the old planes, rows and columns. Its axes are canonical, (d, h, w).

    Raises:
        UserError: it would be larger than a volume may be.
    """
    affine = grid.canonical_affine
    d, h, w = affine[:3, :3].T
    row = h / np.linalg.norm(h)
    column = w - (w @ row) * row
    normal = np.cross(row, column)
    normal *= np.sign(normal @ d) / np.linalg.norm(normal)
    axes = np.stack([normal, row, column / np.linalg.norm(column)], axis=1)
    spacing = np.array([abs(d @ normal), np.linalg.norm(h), np.linalg.norm(column)])
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in grid.canonical_shape), indexing="ij")).reshape(3, -1)
    places = (axes.T @ (affine[:3, :3] @ corners + affine[:3, 3:])) / spacing[:, None]
    low = places.min(1)
    i, j, k = (np.ceil(places.max(1) - low - 1e-6).astype(int) + 1).tolist()
    check_size(grid.source or "the image", (i, j, k))
    matrix = np.eye(4)
    matrix[:3, :3] = axes * spacing
    matrix[:3, 3] = axes @ (low * spacing)
    return Grid((i, j, k), matrix, grid.source, is_canonical=True)


def onto_grid(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Sample a label map at the voxels of another grid: the nearest label, and 0 outside the map.

    Args:
        labels: `[D, H, W]` integers or bool in canonical order.
        source: their grid.
        target: the requested grid.

    Returns:
        `[D, H, W]` of the target, of the same dtype.
    """
    change = np.linalg.inv(source.canonical_affine) @ target.canonical_affine
    return np.asarray(
        ndimage.affine_transform(
            labels.view(np.uint8) if labels.dtype == bool else labels,
            change[:3, :3],
            change[:3, 3],
            output_shape=target.canonical_shape,
            order=0,
            mode="grid-constant",  # "constant" would drop voxels that rounding puts beyond the outermost centres
            cval=0,
            prefilter=False,
        )
    ).view(labels.dtype)
