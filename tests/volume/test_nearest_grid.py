"""Orthogonal grids around slanted ones, and label maps moved between grids by nearest neighbour."""

import numpy as np
import pytest

from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.nearest_grid import is_orthogonal, onto_grid, orthogonal_grid


def grid_of(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (5.0, 2.0, 1.0)) -> Grid:
    depth, height, width = shape
    dz, dy, dx = spacing
    return Grid((width, height, depth), np.diag([-dx, -dy, dz, 1.0]), "scan.nii.gz")


def slanted(shape: tuple[int, int, int], shear: float) -> Grid:
    """Return a grid whose slices are each shifted by `shear` voxels along the rows, as a tilted gantry does."""
    grid = grid_of(shape)
    affine = grid.affine.copy()
    affine[1, 2] = -2.0 * shear
    return Grid(grid.shape, affine, "tilted.nii.gz")


def test_an_orthogonal_grid_around_a_slanted_one_contains_all_voxels_and_keeps_planes():
    grid = slanted((7, 9, 8), 0.6)
    square = orthogonal_grid(grid)
    assert not is_orthogonal(grid) and is_orthogonal(square)
    assert square.spacing == pytest.approx((5.0, 2.0, 1.0))
    moved = onto_grid(np.ones((7, 9, 8), np.uint8), grid, square)
    assert moved.shape[0] == 7 and moved.shape[1] == 9 + round(6 * 0.6)
    assert moved.sum() == 7 * 9 * 8
    back = onto_grid(moved, square, grid)
    assert back.all()


def test_labels_moved_by_whole_voxels_keep_their_values():
    labels = np.random.default_rng(0).integers(0, 5, (4, 6, 5)).astype(np.int32)
    source = grid_of((4, 6, 5))
    affine = source.affine.copy()
    affine[:3, 3] += [-2.0, 0.0, 5.0]  # two columns and one slice further
    moved = onto_grid(labels, source, Grid(source.shape, affine))
    affine[:3, 3] += 0.4  # less than half a voxel changes nothing
    assert np.array_equal(moved, onto_grid(labels, source, Grid(source.shape, affine)))
    assert np.array_equal(moved[:3, :, :3], labels[1:, :, 2:]) and not moved[3].any() and not moved[:, :, 3:].any()
