"""Perturbed prompts: shifts and noise in millimetres on any grid, neighbours, and prompted slices."""

import numpy as np
import pytest

from sam2_3dmed_jax.evaluation.sweep.factors import Setting
from sam2_3dmed_jax.prompts.perturbation import place_prompts, prompted_slices_of, swap_partners
from sam2_3dmed_jax.volume.geometry import Grid

SHAPE = (12, 120, 150)  # D, H, W
TURN = np.deg2rad(20)
ROTATED = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
GRIDS = {
    "anisotropic": np.diag([0.7, 1.9, 5.0]),
    "rotated": ROTATED @ np.diag([0.7, 1.9, 5.0]),
    "rotated, axes exchanged": (ROTATED @ np.diag([0.7, 1.9, 5.0]))[:, [1, 0, 2]],
    "tilted": np.array([[1, 0, 0], [0, 0.94, -0.342], [0, 0.342, 0.94]]) @ np.diag([0.7, -1.9, 5.0]),
    "sheared in the plane": np.array([[0.7, 0.5, 0], [0, 1.9, 0], [0, 0, 5.0]]),
}


def grid_of(name: str) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = GRIDS[name]
    affine[:3, 3] = 11, -7, 3
    probe = Grid((1, 1, 1), affine)
    return Grid(tuple(int(n) for n in np.array(SHAPE)[probe.transform[:, 0]]), affine)


@pytest.fixture
def reference() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    labels[3:9, 50:70, 60:90] = 1
    labels[5, 45:75, 60:90] = 1  # the largest slice
    return labels


def place(reference: np.ndarray, grid: Grid, case: str = "a", target=(1,), seed: int = 0, **factors):
    setting = Setting(**{"placement": "none"} if factors.get("prompt", "point") != "point" else {}, **factors)
    prompts, placed = place_prompts(setting.prompting, case, reference, grid, [target], seed)
    return prompts[target], placed[target]


def mm_of(grid: Grid, index: int, xy: tuple[float, float]) -> np.ndarray:
    return (grid.canonical_affine @ [index, xy[1], xy[0], 1])[:3]


@pytest.mark.parametrize("name", GRIDS)
def test_a_point_is_shifted_by_exact_millimetres_in_the_plane_of_its_slice(name: str, reference: np.ndarray):
    grid = grid_of(name)
    assert grid.canonical_shape == SHAPE
    ((exact,), still) = place(reference, grid)
    assert exact.slice == 5 and still.moved_mm == 0
    for case in "abcdef":
        shifts = []
        for mm in (2.0, 5.0, 10.0):
            ((perturbed,), placed) = place(reference, grid, case, misplacement_mm=mm)
            shift = mm_of(grid, 5, perturbed.points[0]) - mm_of(grid, 5, exact.points[0])
            assert np.linalg.norm(shift) == pytest.approx(mm) == placed.moved_mm and perturbed.slice == 5
            shifts.append(shift / mm)
        np.testing.assert_allclose(shifts[1:], [shifts[0]] * 2, atol=1e-9)  # one direction: levels are paired


def test_directions_depend_only_on_case_object_and_seed(reference: np.ndarray):
    grid = grid_of("anisotropic")
    reference[3:9, 90:110, 60:90] = 2

    def shift(**options) -> np.ndarray:
        ((exact,), _) = place(reference, grid, **options)
        ((perturbed,), _) = place(reference, grid, **options, misplacement_mm=5.0)
        return np.subtract(perturbed.points[0], exact.points[0])

    shifts = [shift(), shift(case="b"), shift(target=(2,)), shift(seed=1)]
    assert all(np.abs(one - other).max() > 1e-3 for at, one in enumerate(shifts) for other in shifts[:at])
    np.testing.assert_array_equal(shift(), shifts[0])


@pytest.mark.parametrize("name", ["anisotropic", "rotated"])
def test_boxes_and_masks_keep_their_size_when_shifted(name: str, reference: np.ndarray):
    grid = grid_of(name)
    ((exact,), _) = place(reference, grid, prompt="box")
    ((perturbed,), placed) = place(reference, grid, prompt="box", misplacement_mm=10.0)
    assert exact.box == (60, 45, 89, 74) and placed.moved_mm == pytest.approx(10)
    shift = np.subtract(perturbed.box, exact.box)
    np.testing.assert_allclose(shift[:2], shift[2:], atol=1e-9)
    ((mask,), placed) = place(reference, grid, prompt="mask", misplacement_mm=10.0)
    assert mask.mask.sum() == (reference[5] == 1).sum()
    assert placed.moved_mm == pytest.approx(10, abs=np.hypot(0.7, 1.9) / 2)  # whole voxels
    np.testing.assert_allclose(np.argwhere(mask.mask).min(0)[::-1], perturbed.box[:2], atol=0.5 + 1e-9)


def test_all_of_a_prompt_stays_on_its_slice_and_its_displacement_is_returned(reference: np.ndarray):
    for prompt in ("point", "box", "mask"):
        ((perturbed,), placed) = place(reference, grid_of("anisotropic"), prompt=prompt, misplacement_mm=1000.0)
        assert 0 < placed.moved_mm < 300
        if prompt == "mask":
            assert perturbed.mask.sum() == (reference[5] == 1).sum()
        else:
            x, y = perturbed.points[0] if prompt == "point" else perturbed.box[2:]
            assert 0 <= x <= SHAPE[2] - 1 and 0 <= y <= SHAPE[1] - 1


def test_noise_has_its_sd_in_millimetres_and_the_same_draw_at_all_levels(reference: np.ndarray):
    grid = grid_of("rotated")
    ((exact,), _) = place(reference, grid)
    shifts = []
    for case in map(str, range(300)):
        ((perturbed,), _) = place(reference, grid, case, noise_mm=4.0)
        ((half_noise,), _) = place(reference, grid, case, noise_mm=2.0)
        shifts.append(np.subtract(perturbed.points[0], exact.points[0]) * (0.7, 1.9))
        np.testing.assert_allclose(2 * np.subtract(half_noise.points[0], exact.points[0]) * (0.7, 1.9), shifts[-1])
    # The SD of the SD of 300 normal draws is 4 / sqrt(600) = 0.16.
    np.testing.assert_allclose(np.std(shifts, axis=0), 4.0, atol=0.65)
    sides = []
    for case in map(str, range(300)):
        ((perturbed,), _) = place(reference, grid, case, prompt="box", noise_mm=4.0)
        sides.append(np.subtract(perturbed.box, (60, 45, 89, 74)) * (0.7, 1.9, 0.7, 1.9))
        assert perturbed.box[0] <= perturbed.box[2] and perturbed.box[1] <= perturbed.box[3]
    np.testing.assert_allclose(np.std(sides, axis=0), 4.0, atol=0.65)


def test_random_points_are_in_the_object_and_differ_between_cases(reference: np.ndarray):
    grid = grid_of("anisotropic")
    points = [place(reference, grid, case, placement="random")[0][0].points[0] for case in "abcd"]
    assert len(set(points)) == 4 and all(reference[5, int(y), int(x)] == 1 for x, y in points)


def test_a_neighbour_prompt_is_on_the_nearest_other_label_of_the_slice(reference: np.ndarray):
    reference[5, 45:75, 95:120] = 2  # 5 columns of 0.7 mm away
    reference[5, 78:100, 60:90] = 3  # 3 rows of 1.9 mm away
    grid = grid_of("rotated")
    ((point,), placed) = place(reference, grid, neighbour=True)
    x, y = point.points[0]
    assert reference[5, int(y), int(x)] == 2 and placed.prompted_onto == "2" and placed.moved_mm > 0
    ((box,), _) = place(reference, grid, prompt="box", neighbour=True)
    assert box.box == (95, 45, 119, 74) and box.object_id == 1
    ((mask,), _) = place(reference, grid, prompt="mask", neighbour=True)
    np.testing.assert_array_equal(mask.mask, reference[5] == 2)


@pytest.mark.parametrize("mm", [0.0, 3.0])
def test_without_a_neighbour_the_prompt_is_outside_by_the_misplacement(mm: float, reference: np.ndarray):
    ((point,), placed) = place(reference, grid_of("rotated"), neighbour=True, misplacement_mm=mm)
    x, y = point.points[0]
    rows, columns = np.nonzero(reference[5] == 1)
    distance = np.hypot((columns - x) * 0.7, (rows - y) * 1.9).min()
    assert mm <= distance < mm + 1.9 and distance > 0 and placed.prompted_onto == "outside"


def test_labels_of_the_object_itself_are_not_neighbours(reference: np.ndarray):
    reference[5, 55:60, 65:70] = 2
    _, placed = place(reference, grid_of("anisotropic"), target=(1, 2), neighbour=True)
    assert placed.prompted_onto == "outside"
    _, placed = place(reference, grid_of("anisotropic"), target=(2,), neighbour=True)
    assert placed.prompted_onto == "1"


def test_prompted_slices_are_the_largest_one_and_others_spread_over_the_extent():
    mask = np.zeros((40, 4, 4), bool)
    mask[5:35, :2] = True
    mask[22] = True
    assert prompted_slices_of(mask, 1) == [22]
    assert prompted_slices_of(mask, 2) == [12, 22]
    assert prompted_slices_of(mask, 3) == [9, 22, 29]
    five = prompted_slices_of(mask, 5)
    assert len(five) == 5 and 22 in five and max(np.diff(five)) <= 10
    mask[10:30] = False
    mask[22] = True
    assert all(mask[index].any() for index in prompted_slices_of(mask, 5))
    assert prompted_slices_of(mask[20:24], 5) == [2]


def test_an_absent_object_has_no_prompts(reference: np.ndarray):
    prompts, placed = place_prompts(Setting().prompting, "a", reference, grid_of("anisotropic"), [(1,), (2,)], 0)
    assert list(prompts) == list(placed) == [(1,)]


@pytest.mark.parametrize(
    ("objects", "partners"),
    [
        ([(1,), (3,), (4,)], {(1,): (3,), (3,): (4,), (4,): (1,)}),
        ([(4,), (1,)], {(4,): (1,), (1,): (4,)}),  # by label value, for any order of painting
        ([(1,)], {}),
        ([(1, 2), (2,)], {}),  # an organ and its tumour
        ([(1, 2), (2,), (3,)], {(1, 2): (3,), (2,): (3,), (3,): (1, 2)}),
    ],
)
def test_an_object_is_swapped_with_the_next_one_that_shares_no_label(objects, partners):
    assert swap_partners({target: target[-1] if target == (2,) else target[0] for target in objects}) == partners


@pytest.mark.parametrize("prompt", ["point", "box", "mask"])
def test_a_swapped_object_gets_the_prompt_of_the_other_one_under_its_own_id(prompt: str, reference: np.ndarray):
    reference[7, 90:110, 100:140] = 2
    grid = grid_of("rotated")
    factors = {"prompt": prompt, "placement": "centre" if prompt == "point" else "none"}
    targets = [(1,), (2,)]
    own, _ = place_prompts(Setting(**factors).prompting, "a", reference, grid, targets, 0)
    setting = Setting(**factors, prompt_of="other")
    swapped, placed = place_prompts(setting.prompting, "a", reference, grid, targets, 0)
    assert list(swapped) == targets
    for target, other in ((1, 2), (2, 1)):
        ((prompt_,), (exact,)) = swapped[target,], own[other,]
        assert (prompt_.object_id, prompt_.slice) == (target, {1: 5, 2: 7}[other])
        assert (prompt_.points, prompt_.box) == (exact.points, exact.box)
        np.testing.assert_array_equal(prompt_.mask, exact.mask)
        assert placed[target,].prompted_onto == str(other) and placed[target,].prompt_of == (other,)
    if prompt == "box":
        # Middles (x, y, slice) of (74.5, 59.5, 5) and (119.5, 99.5, 7), with voxels of 0.7 x 1.9 x 5 mm.
        distance = np.linalg.norm(np.multiply((45, 40, 2), (0.7, 1.9, 5)))
        assert placed[1,].moved_mm == pytest.approx(distance) == placed[2,].moved_mm


def test_a_single_object_has_no_prompt_of_another_one(reference: np.ndarray):
    prompting = Setting(prompt_of="other").prompting
    assert place_prompts(prompting, "a", reference, grid_of("anisotropic"), [(1,), (2,)], 0) == ({}, {})
