"""Regions of the zoom: their size, place and growth, and logits on the grid of the slice."""

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import restore_logits
from sam2_3dmed_jax.volume.zoom import (
    Extent,
    Region,
    RegionLogits,
    crop,
    extent_of_mask,
    grown_side,
    in_slice,
    logits_on_slice,
    parse_zoom,
    region_around,
    side_around,
    touches_border,
    zoom_text,
)

SHAPE, PIXEL_MM = (200, 160), (0.5, 0.8)  # 100 x 128 mm
CLICK = Extent(100.0, 80.0, 100.0, 80.0)


def test_the_region_of_a_click_is_a_square_of_64_mm_with_the_click_near_its_middle():
    region = region_around(CLICK, side_around(CLICK, "auto", PIXEL_MM), SHAPE, PIXEL_MM)
    assert region.shape == (128, 80)  # 64 mm x 64 mm
    for first, n, at in zip((region.top, region.left), region.shape, CLICK[:2], strict=True):
        assert abs(first + n / 2 - at) <= n / 16 + 1  # positions are multiples of an eighth of the side


def test_the_region_of_a_box_is_three_times_as_large_unless_a_side_is_given():
    box = Extent(60.0, 60.0, 100.0, 110.0)  # 20 x 40 mm
    assert side_around(box, "auto", PIXEL_MM) == pytest.approx(120)
    assert side_around(box, 80.0, PIXEL_MM) == 80
    assert side_around(box, 30.0, PIXEL_MM) == pytest.approx(60)  # prompts fit with a margin


@pytest.mark.parametrize("place", [(0.0, 0.0), (199.0, 159.0), (-0.5, 80.0), (199.5, 40.0), (100.0, 159.5)])
@pytest.mark.parametrize("side", [2.0, 17.0, 64.0, 110.0, 500.0])
def test_a_region_is_inside_of_the_slice_and_contains_its_prompts_everywhere(place, side):
    y, x = place
    region = region_around(Extent(y, x, y, x), side, SHAPE, PIXEL_MM)
    assert region.top >= 0 and region.left >= 0
    assert region.top + region.rows <= SHAPE[0] and region.left + region.columns <= SHAPE[1]
    assert region.top - 0.5 <= y <= region.top + region.rows - 0.5
    assert region.left - 0.5 <= x <= region.left + region.columns - 0.5


def test_random_boxes_are_inside_of_their_regions():
    rng = np.random.default_rng(0)
    for _ in range(500):
        y, x = np.sort(rng.uniform(-0.5, np.array(SHAPE)[:, None] - 0.5, (2, 2)), axis=1)
        box = Extent(y[0], x[0], y[1], x[1])
        zoom = float(rng.uniform(1, 90))
        region = region_around(box, side_around(box, zoom, PIXEL_MM), SHAPE, PIXEL_MM)
        assert region.top - 0.5 <= box.y0 and box.y1 <= region.top + region.rows - 0.5
        assert region.left - 0.5 <= box.x0 and box.x1 <= region.left + region.columns - 0.5


def test_a_click_nearby_mostly_gives_the_same_region():
    regions = {region_around(Extent(y, 80.0, y, 80.0), 64.0, SHAPE, PIXEL_MM) for y in np.arange(96.0, 104.0)}
    assert len(regions) <= 2


def test_a_region_grows_by_factors_of_two_and_at_last_to_the_whole_slice():
    sides, growths = [20.0], 0
    while sides[-1] < 128:
        sides.append(grown_side(sides[-1], growths, 128.0))
        growths += 1
    assert sides == [20, 40, 80, 128]
    assert grown_side(2.0, 3, 128.0) == 128  # the fourth growth
    assert region_around(CLICK, 128.0, SHAPE, PIXEL_MM) == Region(0, 0, *SHAPE)


def test_a_mask_touches_a_border_beyond_which_the_slice_continues():
    mask = np.zeros((32, 32), bool)
    mask[10:20, 28:] = True
    assert touches_border(mask, (False, False, False, True))
    assert not touches_border(mask, (True, True, True, False))  # the slice ends there
    assert not touches_border(mask[:, :-1] & False, (True,) * 4)


def test_a_tip_thinner_than_a_sixteenth_of_the_side_does_not_touch():
    mask = np.zeros((64, 64), bool)
    mask[30:33, 40:] = True
    assert not touches_border(mask, (True,) * 4)
    mask[33, 40:] = True
    assert touches_border(mask, (True,) * 4)


def test_slices_of_a_region_end_where_the_whole_slice_ends():
    region = Region(100, 40, 100, 60)
    assert region.open_sides(SHAPE) == (True, False, True, True)
    assert Region(0, 0, *SHAPE).open_sides(SHAPE) == (False,) * 4


def test_a_rectangle_of_cells_is_mapped_to_the_voxels_that_it_covers():
    region = Region(10, 20, 64, 32)
    mask = np.zeros((16, 16), bool)
    mask[2:5, 8] = True
    found = extent_of_mask(mask)
    assert found == (2, 8, 4, 8) and extent_of_mask(mask & False) is None
    # Cells of 4 x 2 voxels; centres of the first and last cell.
    assert in_slice(found, region, mask.shape) == (10 + 2.5 * 4 - 0.5, 20 + 8.5 * 2 - 0.5, 10 + 4.5 * 4 - 0.5, 36.5)


def test_a_crop_keeps_the_millimetres_of_its_voxels():
    affine = np.array([[0, -0.8, 0, 5], [0, 0, -0.7, 9], [-3.0, 0, 0, 40], [0, 0, 0, 1.0]])
    grid = Grid((6, 40, 48), affine)
    volume = Volume(np.arange(6 * 48 * 40, dtype=np.float32).reshape(grid.canonical_shape), grid)
    part = crop(volume, Region(5, 7, 20, 10), slice(2, 4))
    assert part.array.shape == (2, 20, 10) and part.array[1, 3, 4] == volume.array[3, 8, 11]
    at = part.canonical_affine @ (1, 3, 4, 1)
    np.testing.assert_allclose(at, volume.canonical_affine @ (3, 8, 11, 1))
    assert part.spacing == pytest.approx(volume.spacing)


def test_logits_of_a_region_are_background_outside_of_it_and_interpolated_inside():
    logits = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    region = Region(5, 7, 20, 10)
    on_slice = logits_on_slice(RegionLogits(logits, region), 1, (48, 40))
    np.testing.assert_array_equal(on_slice[region.at], restore_logits(logits[1:2], (20, 10))[0])
    outside = np.ones((48, 40), bool)
    outside[region.at] = False
    assert np.isneginf(on_slice[outside]).all()
    np.testing.assert_array_equal(logits_on_slice(logits, 1, (48, 40)), restore_logits(logits[1:2], (48, 40))[0])


def test_the_setting_is_off_auto_or_millimetres():
    assert [parse_zoom(text) for text in ("off", "auto", "64", "12.5")] == ["off", "auto", 64.0, 12.5]
    assert [zoom_text(zoom) for zoom in ("off", "auto", 64.0, 12.5)] == ["off", "auto", "64", "12.5"]


@pytest.mark.parametrize("text", ["on", "0", "-3", "inf", "nan", "", True])
def test_another_setting_is_refused(text):
    with pytest.raises(UserError, match=r"--zoom is .* expected auto, off, or the side of the region in mm, such as"):
        parse_zoom(text)
