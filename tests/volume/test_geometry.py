"""Grids: canonical order, exact inverses, voxel coordinates, millimetres."""

import dataclasses
import itertools

import numpy as np
import pytest
from nibabel.affines import apply_affine

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import (
    Grid,
    Volume,
    from_canonical,
    to_canonical,
    voxel_to_canonical,
)

SHAPE = (3, 4, 5)


def axis_affines():
    """All 48 axis orders and directions, with unequal spacings and an origin."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
                affine[world, axis] = sign * (0.7, 0.8, 5.0)[axis]
            affine[:3, 3] = 10, -20, 30
            yield affine


def random_affine(rng):
    """Any rotation, spacing and direction, with a mild shear."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shear = np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ np.diag(rng.uniform(0.5, 5, 3))
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def affines():
    rng = np.random.default_rng(0)
    return [*axis_affines(), *(random_affine(rng) for _ in range(40))]


def test_canonical_axes_run_to_superior_posterior_and_left_from_any_axis_order():
    for affine in axis_affines():
        directions = Grid(SHAPE, affine).canonical_affine[:3, :3]
        superior, posterior, left = directions[2, 0], -directions[1, 1], -directions[0, 2]
        assert min(superior, posterior, left) > 0
        assert np.count_nonzero(directions) == 3


def test_going_to_canonical_and_back_gives_the_same_array_for_any_affine():
    array = np.arange(60).reshape(SHAPE)
    for affine in affines():
        grid = Grid(SHAPE, affine)
        canonical = to_canonical(array, grid)
        assert canonical.shape == grid.canonical_shape
        np.testing.assert_array_equal(from_canonical(canonical, grid), array)


def test_a_voxel_named_by_its_file_index_is_the_same_voxel_in_canonical_order():
    array = np.arange(60).reshape(SHAPE)
    for affine in affines():
        grid = Grid(SHAPE, affine)
        canonical = to_canonical(array, grid)
        for voxel in itertools.product(*map(range, SHAPE)):
            index = voxel_to_canonical(grid, voxel)
            assert all(value == int(value) for value in index)
            assert canonical[tuple(int(value) for value in index)] == array[voxel]


def test_a_fractional_voxel_keeps_its_place_in_millimetres():
    rng = np.random.default_rng(1)
    for affine in affines():
        grid = Grid(SHAPE, affine)
        voxel = rng.uniform(-0.5, np.array(SHAPE) - 0.5)
        index = voxel_to_canonical(grid, voxel)
        # float64 sums of numbers below 1000
        np.testing.assert_allclose(
            apply_affine(grid.canonical_affine, index), apply_affine(affine, voxel), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize(("axis", "name"), list(enumerate("xyz")))
@pytest.mark.parametrize("value", [-1, -0.51, 7, float("nan"), float("inf")])
def test_a_voxel_outside_names_its_axis_and_limits(axis, name, value):
    voxel = [0.0, 0.0, 0.0]
    voxel[axis] = value
    with pytest.raises(UserError, match=rf"voxel {name} = .*ct\.nii.*{name} from 0 to {SHAPE[axis] - 1}"):
        voxel_to_canonical(Grid(SHAPE, np.eye(4), "ct.nii"), voxel)


def test_a_voxel_of_two_coordinates_is_refused():
    with pytest.raises(UserError, match="three coordinates"):
        voxel_to_canonical(Grid(SHAPE, np.eye(4)), (1, 2))


@pytest.mark.parametrize(
    "affine",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1.0, 0.0, 1.0]),
        np.full((4, 4), np.nan),
        np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ],
)
def test_a_singular_affine_is_refused_with_the_file_named(affine):
    with pytest.raises(UserError, match=r"ct\.nii has a singular affine"):
        Grid(SHAPE, affine, "ct.nii")


def test_tiny_voxels_are_not_taken_for_a_singular_affine():
    assert Grid(SHAPE, np.diag([1e-4, 1e-4, 1e-4, 1])).voxel_volume_ml == pytest.approx(1e-15)


def test_an_empty_axis_is_refused():
    with pytest.raises(UserError, match="no voxels"):
        Grid((3, 0, 5), np.eye(4))


def test_spacing_and_volume_follow_the_canonical_axes():
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -2.5, 0.7, 0.8, 1  # axes: inferior, right, anterior
    volume = Volume(np.zeros((3, 5, 4), np.float32), Grid(SHAPE, affine))
    assert volume.spacing == (2.5, 0.8, 0.7)
    assert volume.voxel_volume_ml == pytest.approx(2.5 * 0.8 * 0.7 / 1000)
    np.testing.assert_array_equal(volume.canonical_affine @ [0, 0, 0, 1], affine @ [2, 3, 4, 1])


def test_shear_makes_a_voxel_smaller_than_the_product_of_its_spacings():
    affine = np.eye(4)
    affine[1, 2] = np.tan(np.radians(18.5))
    grid = Grid(SHAPE, affine)
    assert grid.voxel_volume_ml == pytest.approx(1e-3)
    assert np.prod(grid.spacing) > 1.05


def test_arrays_of_another_shape_are_refused():
    grid = Grid(SHAPE, np.eye(4))
    with pytest.raises(ValueError, match="grid"):
        to_canonical(np.zeros((5, 4, 3)), grid)
    with pytest.raises(ValueError, match="grid"):
        from_canonical(np.zeros((3, 4, 5)), grid)
    with pytest.raises(ValueError, match="grid"):
        Volume(np.zeros((3, 4, 5), np.float32), grid)


def test_a_grid_keeps_its_own_affine():
    affine = np.eye(4)
    grid = Grid(SHAPE, affine)
    affine[0, 0] = 9
    assert grid.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.affine = affine
