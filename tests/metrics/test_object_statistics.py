"""Size, position and intensities of one object."""

import numpy as np
import pytest

from sam2_3dmed_jax.metrics.object_statistics import ObjectStatistics, object_statistics

# Slices 3 mm apart from inferior to superior, rows of 2 mm towards posterior, columns of 1 mm towards left.
AFFINE = np.array([[0, 0, -1, 10], [0, -2, 0, 20], [3, 0, 0, -30], [0, 0, 0, 1.0]])


def test_a_box_has_the_size_position_and_intensities_of_its_voxels():
    mask = np.zeros((5, 8, 9), bool)
    mask[1:3, 2:6, 4:7] = True
    values = np.full(mask.shape, 1000, np.float32)
    values[mask] = np.arange(24)
    found = object_statistics(mask, values, AFFINE)
    assert (found.volume_ml, found.slices) == (pytest.approx(24 * 6 / 1000), 2)
    assert (found.mean, found.min, found.max) == (11.5, 0, 23)
    assert found.sd == pytest.approx(np.sqrt((24**2 - 1) / 12))  # of 24 consecutive numbers
    assert found.box_min_mm == (10 - 6.5, 20 - 11, -30 + 1.5) and found.box_max_mm == (10 - 3.5, 20 - 3, -30 + 7.5)
    assert found.centroid_mm == (5.0, 13.0, -25.5)


def test_the_axial_diameter_of_an_ellipsoid_is_its_longest_axis_on_the_middle_slice():
    z, y, x = np.indices((20, 40, 60))
    mask = ((z - 10) * 3 / 25) ** 2 + ((y - 20) * 2 / 12) ** 2 + ((x - 30) / 20) ** 2 <= 1
    found = object_statistics(mask, np.zeros(mask.shape), AFFINE)
    assert found.axial_diameter_mm == pytest.approx(40, abs=1)  # half a pixel of 1 mm on either side
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 25 * 12 * 20 / 1000, rel=0.01)


def test_an_object_without_a_voxel_has_only_a_size():
    nothing = np.zeros((2, 3, 4), bool)
    assert object_statistics(nothing, np.zeros(nothing.shape), AFFINE) == ObjectStatistics(0.0, 0)
