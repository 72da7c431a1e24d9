"""The page's grid: right, anterior, superior for every order of stored axes, and the same voxels as the file."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.io import read_volume

SHAPE = (3, 4, 5)
ORDERS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def grid_of(order: tuple[int, ...], signs: tuple[int, ...]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for file_axis, (world_axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world_axis, file_axis] = sign * (1 + world_axis)
    return Grid(SHAPE, affine)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_voxels_of_the_page_run_to_the_right_the_front_and_the_head(order, signs):
    grid = grid_of(order, signs)
    display = DisplayGrid(grid)
    assert display.spacing == pytest.approx((1, 2, 3))
    corners = {}
    for voxel in itertools.product(*((0, length - 1) for length in display.shape)):
        at = display.to_file(voxel)
        assert display.from_file(at) == voxel
        corners[voxel] = grid.affine[:3, :3] @ at + grid.affine[:3, 3]
    origin = corners[0, 0, 0]
    for voxel, place in corners.items():
        np.testing.assert_allclose(place - origin, np.multiply(voxel, (1, 2, 3)))


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_slices_come_from_the_file_and_return_to_it(order, signs):
    grid = grid_of(order, signs)
    display = DisplayGrid(grid)
    labels = np.random.default_rng(1).random(SHAPE) < 0.5
    axis = order.index(2)  # the axis of the file from inferior to superior
    slices = {}
    for index in range(SHAPE[axis]):
        z, mask = display.slice_of_page(labels.take(index, axis), axis, index)
        assert display.slice_in_file(z) == index
        slices[z] = mask
        for y, x in itertools.product(*map(range, mask.shape)):
            at = tuple(int(n) for n in display.to_file((x, y, z)))
            assert mask[y, x] == labels[at]
    np.testing.assert_array_equal(display.volume_of_file(slices), labels)


def test_a_brain_in_six_axis_orders_is_the_same_file_on_the_page(realdata: Path):
    files = sorted((realdata / "orientations").glob("*.nii.gz"))
    assert len(files) == 6
    images = []
    for file in files:
        volume = read_volume(file, modality="MR")
        images.append(nib.Nifti1Image.from_bytes(DisplayGrid(volume.grid).nifti(volume)))
    for image in images:
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(image.get_fdata(), images[0].get_fdata())
        np.testing.assert_allclose(image.affine, images[0].affine, atol=1e-4)
