"""The three-plane picture: planes through the objects, in radiological orientation."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from sam2_3dmed_jax.pictures import planes
from sam2_3dmed_jax.pictures.overlay import PREDICTION
from sam2_3dmed_jax.pictures.planes import three_planes
from sam2_3dmed_jax.pictures.view import centre_voxel
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.geometry import Grid, Volume

# Stored in canonical order: (d, h, w) grow to superior, posterior and left, with spacings 4, 2 and 1 mm.
GRID = Grid((8, 12, 20), np.array([[0, 0, -1.0, 0], [0, -2.0, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]]))


@pytest.fixture
def volume() -> Volume:
    array = np.full(GRID.canonical_shape, -1000, np.float32)
    array[7], array[:, 11], array[:, :, 19] = 300, 200, 100  # superior, posterior, left
    return Volume(array, GRID)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The drawn figures, kept open."""
    kept: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(planes, "write_figure_with_legend", lambda figure, *_: kept.append(figure))
    yield kept
    plt.close("all")


def labels_with(*blocks: tuple[int, tuple[slice, slice, slice]]) -> np.ndarray:
    labels = np.zeros(GRID.canonical_shape, np.uint16)
    for value, block in blocks:
        labels[block] = value
    return labels


def test_planes_pass_through_the_objects_centre_with_the_aspect_of_voxels(volume, figures):
    three_planes("unused", volume, labels_with((3, np.s_[2:5, 4:7, 10:13])))
    axial, coronal, sagittal = figures[0].axes
    assert [axis.get_title() for axis in figures[0].axes] == [
        "object 3, axial i = 3",
        "object 3, coronal j = 5",
        "object 3, sagittal k = 11",
    ]
    assert [axis.get_aspect() for axis in (axial, coronal, sagittal)] == [2.0, 4.0, 2.0]


def test_right_anterior_and_head_are_where_a_radiologist_expects_them(volume, figures):
    three_planes("unused", volume, labels_with((1, np.s_[2:5, 4:7, 10:13])))
    # Bright pixels are superior, posterior or left: their side on the screen, and its letter.
    for axis, borders in zip(figures[0].axes, ({"L", "P"}, {"L", "S"}, {"P", "S"}), strict=True):
        image = np.asarray(axis.images[0].get_array())
        if axis.images[0].origin == "lower":
            image = image[::-1]
        sides = {"top": image[0, 1:-1], "bottom": image[-1, 1:-1], "left": image[1:-1, 0], "right": image[1:-1, -1]}
        bright = {side for side, pixels in sides.items() if (pixels > 0).all()}
        places = {(0.5, 0.97): "top", (0.5, 0.03): "bottom", (0.03, 0.5): "left", (0.97, 0.5): "right"}
        letters = {places[text.get_position()]: text.get_text() for text in axis.texts}
        assert {letters[side] for side in bright} == borders
        assert set(letters.values()) in ({"A", "P", "R", "L"}, {"S", "I", "R", "L"}, {"S", "I", "A", "P"})


def test_the_centre_of_a_hollow_object_is_one_of_its_voxels():
    ring = np.ones((1, 9, 9), bool)
    ring[0, 1:8, 1:8] = False
    assert ring[centre_voxel(ring)]


def test_each_object_has_a_row_and_a_missed_one_is_shown_at_its_prompt(volume, figures):
    prompts = [VoxelPrompt(1, 3, ((11.0, 5.0),), (1,)), VoxelPrompt(2, 6, ((4.0, 2.0),), (1,))]
    three_planes("unused", volume, labels_with((1, np.s_[2:5, 4:7, 10:13])), None, prompts)
    assert [axis.get_title() for axis in figures[0].axes[::3]] == ["object 1, axial i = 3", "object 2, axial i = 6"]


def test_planes_pass_through_the_click_and_not_through_the_centre(volume, figures):
    three_planes(
        "unused", volume, labels_with((1, np.s_[2:5, 4:7, 10:13])), None, [VoxelPrompt(1, 4, ((12.0, 6.0),), (1,))]
    )
    assert [axis.get_title().rpartition(" ")[2] for axis in figures[0].axes] == ["4", "6", "12"]


def test_a_small_object_has_a_second_row_of_enlarged_planes(figures):
    shape = (60, 100, 100)
    volume = Volume(np.zeros(shape, np.float32), Grid((100, 100, 60), np.diag([-1.0, -1.0, 1.5, 1.0])))
    labels = np.zeros(shape, np.uint16)
    labels[30:32, 50:52, 20:22] = 1
    three_planes("unused", volume, labels)
    whole, enlarged = figures[0].axes[:3], figures[0].axes[3:]
    assert all(axis.get_title().endswith(", enlarged") for axis in enlarged) and len(whole) == len(enlarged)
    coronal = enlarged[1]
    (x0, x1), (low, high) = coronal.get_xlim(), coronal.get_ylim()
    assert (x1 - x0) == pytest.approx(30, abs=1) == (high - low) * 1.5  # mm
    assert x0 < 20 < 21 < x1 and low < 30 < 31 < high  # the head is up


@pytest.mark.parametrize("shape", [(1, 12, 20), (8, 1, 20), (8, 12, 1), (1, 1, 1)])
def test_a_picture_without_objects_is_written_for_any_shape(tmp_path: Path, shape: tuple[int, int, int]):
    volume = Volume(np.zeros(shape, np.float32), Grid(shape, GRID.affine))
    three_planes(tmp_path / "planes.png", volume, np.zeros(shape, np.uint16))
    assert (tmp_path / "planes.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["planes.png"]


def test_an_object_has_the_given_colour_also_in_a_volume_of_one_slice(figures):
    grid = Grid((1, 12, 20), GRID.affine)
    volume = Volume(np.zeros(grid.canonical_shape, np.float32), grid)
    prediction = np.zeros(grid.canonical_shape, np.uint16)
    prediction[:, 2:6, 3:9], prediction[:, 7:11, 12:19] = 1, 2
    objects = {1: ObjectLabel("spleen"), 2: ObjectLabel("left kidney", color="#ff00ff")}
    three_planes("picture.png", volume, prediction, objects=objects)
    first, second = figures[0].axes[:3], figures[0].axes[3:6]
    for axis, color in ((first[1], PREDICTION), (second[1], "#ff00ff")):
        (contour,) = (part for part in axis.collections if isinstance(part, matplotlib.contour.ContourSet))
        assert matplotlib.colors.to_hex(contour.get_edgecolor()[0]) == color
    colors = {matplotlib.colors.to_hex(part.get_edgecolor()[0]) for part in first[0].collections}
    assert colors == {PREDICTION, "#ff00ff"}
