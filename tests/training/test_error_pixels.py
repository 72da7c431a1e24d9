"""Corrective clicks inside compiled steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed_jax.training.error_pixels import draw_error_clicks, squared_depth


def masks(*pixels, shape=(6, 8)):
    mask = np.zeros(shape, bool)
    for y, x in pixels:
        mask[y, x] = True
    return mask


def click(predicted, reference, draw):
    found = jax.jit(draw_error_clicks)(predicted[None], reference[None], jnp.array([draw], jnp.float32))
    return tuple(np.asarray(found.coords[0]).astype(int).tolist()), bool(found.inside[0])


def test_the_depth_of_a_region_equals_the_exact_distance_transform_of_scipy():
    rng = np.random.default_rng(0)
    regions = ndimage.gaussian_filter(rng.normal(size=(5, 23, 31)), (0, 2, 2)) > 0
    regions[3], regions[4] = True, False
    found = np.asarray(jax.jit(squared_depth)(jnp.asarray(regions)))
    for region, depth in zip(regions, found, strict=True):
        padded = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        np.testing.assert_array_equal(depth, np.round(padded**2).astype(int))


def test_a_uniform_click_is_on_the_wrong_pixel_of_its_rank():
    reference, predicted = masks((1, 2), (1, 3), (4, 5)), masks((1, 3), (0, 7), (5, 0))
    wrong = [(0, 7), (1, 2), (4, 5), (5, 0)]  # in row order
    for rank, (y, x) in enumerate(wrong):
        for draw in (rank / 4, (rank + 0.99) / 4):
            assert click(predicted, reference, draw) == ((x, y), bool(reference[y, x]))


def test_a_centre_click_is_at_the_deepest_pixel_of_the_missed_or_excess_region():
    reference, predicted = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    reference[2:9, 2:9] = True  # missed: half of its side is 4 pixels
    predicted[5:16, 15:26] = True  # excess: 6 pixels
    assert click(predicted, reference, -1.0) == ((20, 10), False)
    assert click(np.zeros_like(predicted), reference, -1.0) == ((5, 5), True)


def test_touching_missed_and_excess_regions_have_depths_of_their_own():
    reference, predicted = np.zeros((9, 20), bool), np.zeros((9, 20), bool)
    reference[1:8, 1:8], predicted[1:8, 8:15] = True, True
    assert click(predicted, reference, -1.0) == ((4, 4), True)  # and not on the border between the two


def test_a_click_without_an_error_is_outside_of_the_object():
    reference = masks((2, 2), (2, 3))
    for draw in (-1.0, 0.0, 0.999):
        (x, y), inside = click(reference, reference, draw)
        assert not inside and not reference[y, x]
    everything = np.ones((6, 8), bool)
    assert click(everything, everything, 0.5)[1]


@pytest.mark.parametrize("draw", [0.0, 0.5, -1.0])
def test_rows_are_clicked_independently_of_each_other(draw):
    rng = np.random.default_rng(1)
    predicted, reference = rng.random((2, 4, 16, 16)) < 0.4
    together = jax.jit(draw_error_clicks)(predicted, reference, jnp.full(4, draw, jnp.float32))
    mixed = jax.jit(draw_error_clicks)(predicted, reference, jnp.array([draw, 0.3, -1.0, draw], jnp.float32))
    for row in range(4):
        alone = click(predicted[row], reference[row], draw)
        assert alone == (tuple(np.asarray(together.coords[row]).astype(int).tolist()), bool(together.inside[row]))
    np.testing.assert_array_equal(mixed.coords[3], together.coords[3])
