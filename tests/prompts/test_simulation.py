"""Simulated prompts: points inside masks, boxes, box noise, and conversion to pixels."""

import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.simulation import (
    box_of,
    centre_point,
    jitter_box,
    largest_slice,
    random_point,
    to_pixels,
)

SHAPE = (40, 60)


def blobs(seed):
    """Return a random mask of SHAPE with several components, some of them at the border."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    return ndimage.gaussian_filter(noise, 3) > 0.05


def ring():
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    radius = np.hypot(rows - 20, columns - 30)
    return (radius < 15) & (radius > 8)


def test_the_largest_slice_has_the_most_voxels_and_is_the_lowest_of_several():
    mask = np.zeros((5, 8, 8), np.uint8)
    mask[1, :2], mask[2, :4], mask[4, 4:] = 1, 7, 1
    assert largest_slice(mask) == 2


def test_the_centre_point_is_inside_objects_of_any_shape():
    for mask in [ring(), *(blobs(seed) for seed in range(20))]:
        x, y = centre_point(mask, (0.8, 0.8))
        assert mask[int(y), int(x)]


def test_the_centre_point_is_the_maximum_of_the_whole_padded_distance_transform():
    for seed in range(10):
        mask = blobs(seed)
        distance = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=(2.0, 0.7))[1:-1, 1:-1]
        x, y = centre_point(mask, (2.0, 0.7))
        assert (y, x) == np.unravel_index(distance.argmax(), mask.shape)


def test_a_mask_that_fills_the_slice_has_its_centre_in_the_middle():
    assert centre_point(np.ones((9, 21), bool), (1.0, 0.4)) == (10, 4)


def test_the_centre_point_is_the_farthest_in_millimetres_and_not_in_voxels():
    mask = np.zeros((20, 40), bool)
    mask[2:5, 5:20] = True  # 3 rows of 5 mm: 10 mm deep
    mask[8:13, 22:36] = True  # 5 rows and 14 columns of 1 mm: deeper in rows, 7 mm across
    _, y_voxels = centre_point(mask, (1.0, 1.0))
    assert 8 <= y_voxels < 13
    mask[8:13, 22:36] = False
    mask[8:19, 22:25] = True  # 11 rows, but only 3 columns of 1 mm
    _, y_mm = centre_point(mask, (5.0, 1.0))
    assert 2 <= y_mm < 5


def test_a_random_point_is_inside_and_depends_only_on_the_seed():
    mask = blobs(0)
    points = [random_point(mask, np.random.default_rng(seed)) for seed in range(50)]
    assert all(mask[int(y), int(x)] for x, y in points)
    assert len(set(points)) > 30
    assert points[3] == random_point(mask, np.random.default_rng(3))


def test_a_box_includes_the_outermost_voxels():
    mask = np.zeros(SHAPE, np.int32)
    mask[5, 7] = mask[11, 30] = 2
    assert box_of(mask) == (7, 5, 30, 11)


@pytest.mark.parametrize("of", [box_of, lambda m: centre_point(m, (1, 1)), lambda m: random_point(m, None)])
def test_an_empty_mask_is_rejected(of):
    with pytest.raises(UserError, match="is empty on its slice of 40 x 60 voxels; give a mask with the object"):
        of(np.zeros(SHAPE, bool))


def test_a_volume_without_the_object_is_rejected():
    with pytest.raises(UserError, match="is empty on all 4 slices; give a mask with the object"):
        largest_slice(np.zeros((4, *SHAPE)))


def test_box_noise_is_bounded_ordered_and_stays_on_the_slice():
    rng = np.random.default_rng(0)
    box = (10.0, 5.0, 29.0, 14.0)
    for _ in range(200):
        moved = np.array(jitter_box(box, 0.1, rng, SHAPE))
        assert (np.abs(moved - box) <= (2, 1, 2, 1)).all()
        x0, y0, x1, y1 = jitter_box(box, 2.0, rng, SHAPE)
        assert 0 <= x0 <= x1 <= 59
        assert 0 <= y0 <= y1 <= 39
    assert jitter_box(box, 0.0, rng, SHAPE) == box


def test_pixels_follow_the_half_pixel_rule_for_points_and_boxes():
    pixels = to_pixels(np.array([[0, 0], [59, 39]]), SHAPE, 120)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, [[0.5, 1.0], [118.5, 118.0]])
    assert to_pixels(np.reshape((1, 2, 3, 4), (2, 2)), SHAPE, 120).shape == (2, 2)
