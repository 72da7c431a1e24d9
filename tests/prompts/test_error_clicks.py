from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed_jax.prompts import error_clicks
from sam2_3dmed_jax.prompts.error_clicks import ErrorClick, error_click


def _volume(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = (9, 12, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


_CUBE = (slice(2, 7), slice(2, 7), slice(2, 7))
_SMALL = (slice(2, 4), slice(9, 11), slice(9, 11))


def test_no_error_gives_no_click():
    mask = _volume(_CUBE)
    assert error_click(mask, mask) is None


def test_a_missed_object_is_clicked_inside_at_its_centre():
    assert error_click(_volume(), _volume(_CUBE, _SMALL)) == ErrorClick((4, 4, 4), True)


def test_an_excess_object_is_clicked_outside_at_its_centre():
    assert error_click(_volume(_CUBE, _SMALL), _volume(_SMALL)) == ErrorClick((4, 4, 4), False)


def test_the_largest_component_has_the_most_voxels_not_the_greatest_depth():
    plate = (slice(0, 1), slice(0, 12), slice(0, 12))  # 144 voxels, 1 deep; the cube has 125 and is 3 deep
    click = error_click(_volume(), _volume(plate, (slice(3, 8), slice(3, 8), slice(3, 8))))
    assert click is not None and click.voxel == (0, 0, 0)


def test_missed_and_excess_voxels_that_touch_form_one_component():
    prediction = _volume((slice(2, 7), slice(2, 7), slice(0, 3)))
    reference = _volume((slice(2, 7), slice(2, 7), slice(3, 6)), (slice(0, 9), slice(9, 12), slice(9, 12)))
    # The two halves have 75 voxels each and the bar has 81, so that only their union is larger than the bar.
    assert error_click(prediction, reference) == ErrorClick((4, 4, 2), False)


def test_components_that_touch_at_a_corner_are_one():
    reference = _volume(
        (slice(0, 2), slice(0, 2), slice(0, 2)), (slice(2, 4), slice(2, 4), slice(2, 4)), (slice(6, 9),) * 3
    )
    reference[8, 8, 6:] = False  # 24 voxels; less than 27, more than 8
    click = error_click(np.zeros_like(reference), reference)
    assert click is not None and click.voxel == (7, 7, 7)
    reference[6:9, 6:9, 6:9] = False
    reference[6, 6, 6:9] = reference[7, 6, 6:9] = reference[8, 6, 6:9] = True  # 9 voxels; less than 8 + 8
    click = error_click(np.zeros_like(reference), reference)
    assert click is not None and click.voxel == (0, 0, 0)


def test_the_border_of_the_volume_counts_as_outside():
    half = _volume((slice(0, 9), slice(0, 5), slice(0, 12)))
    assert error_click(np.zeros_like(half), half) == ErrorClick((2, 2, 2), True)


def test_spacing_changes_the_deepest_voxel():
    # A plate of 3 x 7 x 7 voxels is at most 2 voxels deep; with slices of 4 mm, its axis is 4 mm deep in all slices.
    reference = _volume((slice(0, 3), slice(0, 7), slice(0, 7)), shape=(12, 7, 7))
    in_voxels = error_click(np.zeros_like(reference), reference)
    in_mm = error_click(np.zeros_like(reference), reference, (4.0, 1.0, 1.0))
    assert in_voxels is not None and in_voxels.voxel == (1, 1, 1)
    assert in_mm is not None and in_mm.voxel == (0, 3, 3)


def test_first_of_several_largest_components_is_clicked():
    reference = _volume((slice(6, 8), slice(0, 2), slice(0, 2)), (slice(2, 4), slice(8, 10), slice(8, 10)))
    click = error_click(np.zeros_like(reference), reference)
    assert click is not None and click.voxel == (2, 8, 8)


def test_unequal_shapes_are_an_error():
    with pytest.raises(ValueError, match="same shape"):
        error_click(np.zeros((1, 2, 3), bool), np.zeros((1, 2, 4), bool))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", ["first", "challenge"])
def test_clicks_equal_the_rule_written_out_on_whole_volumes(seed: int, ties: str):
    rng = np.random.default_rng(seed)
    prediction, reference = (ndimage.gaussian_filter(rng.normal(size=(11, 14, 13)), 1.2) > 0.1 for _ in range(2))
    components, count = ndimage.label(prediction != reference, np.ones((3, 3, 3)))
    sizes = [np.count_nonzero(components == number) for number in range(1, count + 1)]
    largest = np.pad(components == 1 + int(np.argmax(sizes)), 5)
    depth = ndimage.distance_transform_edt(largest)[5:-5, 5:-5, 5:-5]
    places = np.argwhere(depth == depth.max())
    if ties == "challenge":
        np.random.seed(42)
        voxel = tuple(places[np.random.choice(len(places))])
    else:
        voxel = tuple(places[0])
    assert error_click(prediction, reference, ties=ties) == ErrorClick(voxel, bool(reference[voxel]))  # type: ignore[arg-type]


def test_the_example_of_the_documentation_runs():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "clicks.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("seed", range(8))
def test_large_components_are_measured_in_cells_of_two_voxels_as_the_challenge_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(12, 15, 13)), 2.5)
    reference = ndimage.label(noise > noise.mean())[0] == 1
    (z0, z1), (y0, y1), (x0, x1) = ((axis.min(), axis.max() + 1) for axis in np.nonzero(reference))
    crop = reference[z0:z1, y0:y1, x0:x1]
    before = [max(int(n * 0.25), 1) for n in crop.shape]
    padded = np.zeros([n + 2 * p + (n + 2 * p) % 2 for n, p in zip(crop.shape, before, strict=True)], bool)
    place = tuple(slice(p, p + n) for n, p in zip(crop.shape, before, strict=True))
    padded[place] = crop
    cells = np.zeros([n // 2 for n in padded.shape], bool)
    for voxel in np.argwhere(padded):
        cells[tuple(voxel // 2)] = True
    coarse = ndimage.distance_transform_edt(cells)
    depth = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[place] * crop
    np.random.seed(42)
    places = np.argwhere(depth == depth.max())
    expected = places[np.random.choice(len(places))] + (z0, y0, x0)

    monkeypatch.setattr(error_clicks, "_CHALLENGE_FULL_RESOLUTION", 100)
    click = error_click(np.zeros_like(reference), reference, ties="challenge")
    assert click == ErrorClick(tuple(expected.tolist()), True)
