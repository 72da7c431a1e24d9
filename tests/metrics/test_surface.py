"""NSD, HD95, HD and ASSD: cases computed by hand, properties, empty masks, mistakes, and the number of compilations."""

import itertools
import math

import numpy as np
import pytest
from scipy.spatial import KDTree

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import overlap_metrics, surface_metrics
from sam2_3dmed_jax.metrics import nearest_surface
from sam2_3dmed_jax.metrics.mask_box import union_box
from sam2_3dmed_jax.metrics.surface import DEFINITIONS
from sam2_3dmed_jax.metrics.surface_area import CORNERS, area_of_codes
from tests.helpers.surface_cases import blobs

SHAPE = (12, 20, 24)
SPACING = (5.0, 0.8, 0.7)
DISTANCES = ("hd95_mm", "hd_mm", "assd_mm")
# After a permutation, the same numbers are added in another order.
ROUNDING = 1e-12


def cube(z: slice, y: slice, x: slice, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[z, y, x] = True
    return mask


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_mask_agrees_with_itself_completely(definition: str):
    own, _ = blobs(0, SHAPE)
    metrics = surface_metrics(own, own, SPACING, 0.0, definition)
    assert metrics == {"nsd": 1.0, "hd95_mm": 0.0, "hd_mm": 0.0, "assd_mm": 0.0}


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("axis", range(3))
def test_two_voxels_are_as_far_apart_as_their_centres(axis: int, definition: str):
    one, other = np.zeros((2, 9, 9, 9), bool)
    at = [4, 4, 4]
    one[tuple(at)] = True
    at[axis] += 4
    other[tuple(at)] = True
    metrics = surface_metrics(one, other, SPACING, 1.0, definition)
    # A surface of cubes reaches half a voxel around a voxel's centre: its elements are three to four apart.
    gap = 3 * SPACING[axis] if definition == "surface-distance" else 4 * SPACING[axis]
    assert metrics["hd_mm"] == 4 * SPACING[axis]
    mean = (gap + 4 * SPACING[axis]) / 2
    assert metrics["assd_mm"] == pytest.approx(mean, rel=ROUNDING)
    assert metrics["nsd"] == 0 and metrics["hd95_mm"] == pytest.approx(4 * SPACING[axis], rel=ROUNDING)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_two_cubes_at_a_known_distance_have_the_metrics_computed_by_hand(definition: str):
    # 2 x 2 x 2 voxels each, all of them border voxels; 5 voxels of 0.7 mm from one to the other.
    one, other = cube(np.s_[4:6], np.s_[8:10], np.s_[3:5]), cube(np.s_[4:6], np.s_[8:10], np.s_[8:10])
    metrics = surface_metrics(one, other, SPACING, 4 * SPACING[2], definition)
    if definition != "surface-distance":
        # Half of the voxels are 4 steps from the other cube, and half are 5 steps.
        assert metrics == {
            "nsd": 0.5,
            "hd95_mm": 5 * SPACING[2],
            "hd_mm": 5 * SPACING[2],
            "assd_mm": pytest.approx(4.5 * SPACING[2], rel=ROUNDING),
        }
        return
    # Elements of a cube's surface are in three planes across x, which are 3, 4 and 5 steps away. The outer two have
    # four corners, two edges along y, two along z and a face each; the middle one four edges along x and four faces.
    area = area_of_codes(SPACING)
    codes = {name: sum(1 << CORNERS.index(c) for c in corners) for name, corners in PATCHES.items()}
    end = 4 * area[codes["corner"]] + 2 * area[codes["edge y"]] + 2 * area[codes["edge z"]] + area[codes["face x"]]
    middle = 4 * area[codes["edge x"]] + 2 * area[codes["face y"]] + 2 * area[codes["face z"]]
    total = 2 * end + middle
    assert metrics["nsd"] == pytest.approx((end + middle) / total, rel=ROUNDING)
    assert metrics["hd95_mm"] == metrics["hd_mm"] == 5 * SPACING[2]
    mean = (3 * end + 4 * middle + 5 * end) / total * SPACING[2]
    assert metrics["assd_mm"] == pytest.approx(mean, rel=ROUNDING)


# Corners of a 2 x 2 x 2 neighbourhood that are inside: at a block's corner, along its edges, on its faces.
PATCHES = {
    "corner": [(1, 1, 1)],
    "edge x": [(1, 1, 0), (1, 1, 1)],
    "edge y": [(1, 0, 1), (1, 1, 1)],
    "edge z": [(0, 1, 1), (1, 1, 1)],
    "face x": [(z, y, 1) for z in (0, 1) for y in (0, 1)],
    "face y": [(z, 1, x) for z in (0, 1) for x in (0, 1)],
    "face z": [(1, y, x) for y in (0, 1) for x in (0, 1)],
}


def test_areas_of_corners_edges_and_faces_agree_with_geometry():
    a, b, c = SPACING
    area = area_of_codes(SPACING)
    code = {name: sum(1 << CORNERS.index(corner) for corner in corners) for name, corners in PATCHES.items()}
    assert area[code["face x"]] == pytest.approx(a * b) and area[code["face z"]] == pytest.approx(b * c)
    # A corner is cut by the triangle through the middles of three edges, an edge by a slanted rectangle.
    sides = np.array([[a, -b, 0], [a, 0, -c]]) / 2
    assert area[code["corner"]] == pytest.approx(np.linalg.norm(np.cross(*sides)) / 2)
    assert area[code["edge x"]] == pytest.approx(c * math.hypot(a / 2, b / 2))
    assert area[0] == area[255] == 0 and (area[1:255] > 0).all()


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_permuting_axes_and_spacing_changes_nothing(axes: tuple[int, int, int], definition: str):
    one, other = blobs(4, SHAPE)
    expected = surface_metrics(one, other, SPACING, 1.5, definition)
    spacing = tuple(SPACING[axis] for axis in axes)
    metrics = surface_metrics(one.transpose(axes), other.transpose(axes), spacing, 1.5, definition)
    assert metrics == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_mirroring_moving_and_exchanging_masks_change_nothing(definition: str):
    one, other = blobs(5, SHAPE)
    expected = surface_metrics(one, other, SPACING, 1.5, definition)
    assert surface_metrics(other, one, SPACING, 1.5, definition) == pytest.approx(expected, rel=ROUNDING)
    mirrored = [np.flip(mask, (0, 2)) for mask in (one, other)]
    assert surface_metrics(*mirrored, SPACING, 1.5, definition) == pytest.approx(expected, rel=ROUNDING)
    moved = [np.pad(mask.astype(np.uint8), ((3, 0), (0, 5), (7, 2))) for mask in (one, other)]
    assert surface_metrics(*moved, SPACING, 1.5, definition) == expected


@pytest.mark.parametrize("voxels", [False, True])
@pytest.mark.parametrize("query", [0.0, 3e3, 1e12], ids=["tree", "both", "passes"])
def test_every_element_gets_the_nearest_element_of_the_other_surface(
    query: float, voxels: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nearest_surface, "_QUERY_COST", {"cpu": query})
    rng = np.random.default_rng(6)
    for share in (1e-3, 0.02, 0.3) * 10:
        masks = rng.random((2, *rng.integers(1, 40, 3))) < share
        for mask in masks:
            mask.flat[rng.integers(mask.size)] = True
        spacing = tuple(rng.uniform(0.3, 6, 3).tolist())
        box = union_box(*masks)
        pair = nearest_surface.nearest_surface_elements(box, spacing, voxels)
        for own, other in (pair, pair[::-1]):
            start, ends = (np.stack(np.unravel_index(elements.position, box.shape), -1) for elements in (own, other))
            expected, _ = KDTree(ends * spacing).query(start * spacing)
            # Distances are ranked in float32, so an element may be further by a rounding error.
            np.testing.assert_allclose(np.linalg.norm(own.offset.T * spacing, axis=-1), expected, rtol=1e-6)
            landed = np.ravel_multi_index(tuple(start.T + own.offset), box.shape)
            assert np.isin(landed, other.position).all()


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("share", [1e-3, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_missed_structure_never_improves_any_value(seed: int, share: float, definition: str):
    rng = np.random.default_rng(seed)
    prediction, reference = rng.random((2, 5, 9, 8)) < share
    # Opposite corners of the image are as far apart as a prediction can be.
    prediction[0, 0, 0] = reference[4, 8, 7] = True
    nothing = np.zeros_like(prediction)
    metrics = surface_metrics(prediction, reference, SPACING, 2.0, definition)
    miss = surface_metrics(nothing, reference, SPACING, 2.0, definition)
    assert miss["nsd"] <= metrics["nsd"] and all(miss[key] >= metrics[key] for key in DISTANCES)
    overlap, missed_overlap = overlap_metrics(prediction, reference), overlap_metrics(nothing, reference)
    assert all(missed_overlap[key] <= overlap[key] for key in overlap)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_one_empty_mask_has_the_image_diagonal_as_distance_or_nan_by_policy(definition: str):
    nothing, organ = np.zeros(SHAPE, bool), cube(np.s_[3:5], np.s_[4:9], np.s_[5:9])
    diagonal = math.sqrt((12 * 5.0) ** 2 + (20 * 0.8) ** 2 + (24 * 0.7) ** 2)
    for pair in ((nothing, organ), (organ, nothing)):
        metrics = surface_metrics(*pair, SPACING, definition=definition)
        assert metrics == {"nsd": 0.0} | dict.fromkeys(DISTANCES, pytest.approx(diagonal))
        metrics = surface_metrics(*pair, SPACING, definition=definition, empty="nan")
        assert metrics["nsd"] == 0 and all(math.isnan(metrics[key]) for key in DISTANCES)


@pytest.mark.parametrize("empty", ["diagonal", "nan"])
def test_two_empty_masks_have_no_score(empty: str):
    nothing = np.zeros(SHAPE, bool)
    metrics = surface_metrics(nothing, nothing, SPACING, empty=empty)
    assert set(metrics) == {"nsd", *DISTANCES} and all(map(math.isnan, metrics.values()))


def test_a_hundred_cases_of_different_sizes_compile_at_most_eight_times():
    sizes = np.random.default_rng(0).integers((3, 10, 10), (30, 90, 90), (100, 3))
    nearest_surface._search.clear_cache()
    for size in sizes:  # both the image and the box of the object differ
        one, other = np.zeros((2, *(size + 2)), bool)
        one[1 : size[0], 1 : size[1], 1 : size[2]] = True
        other[2 : size[0] + 1, 1 : size[1], 2 : size[2]] = True
        metrics = surface_metrics(one, other, (2.5, 0.7, 0.7))
        assert 0 < metrics["nsd"] <= 1
    assert 1 <= nearest_surface._search._cache_size() <= 8
    # From a nodule to a torso: boxes of up to 32 million voxels share eight sizes.
    voxels = np.geomspace(8, 2**25, 10_000).astype(int).tolist()
    assert len(set(map(nearest_surface.padded_size, voxels))) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": np.zeros((1, 20, 24), bool)}, r"prediction is \(12, 20, 24\).*one grid"),
        ({"prediction": np.zeros((20, 24), bool)}, r"prediction has the shape \(20, 24\); give one mask"),
        ({"spacing": (5.0, 0.0, 0.7)}, "three positive numbers"),
        ({"spacing": (5.0, 0.7)}, "three positive numbers"),
        ({"tolerance_mm": -1.0}, "tolerance_mm is -1.0"),
        ({"tolerance_mm": math.nan}, "tolerance_mm is nan"),
        ({"definition": "plastimatch"}, "surface-distance, monai, medpy"),
        ({"empty": "zero"}, "diagonal, nan"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(change: dict, message: str):
    right = {"prediction": np.zeros(SHAPE, bool), "reference": np.zeros(SHAPE, bool), "spacing": SPACING}
    with pytest.raises(UserError, match=message):
        surface_metrics(**(right | change))
