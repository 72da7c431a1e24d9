"""The three-plane picture: planes through the objects, in radiological orientation."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from sam2_3dmed_jax.pictures import planes
from sam2_3dmed_jax.pictures.planes import centre_voxel, three_planes
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
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
        "object 3, axial 3",
        "object 3, coronal 5",
        "object 3, sagittal 11",
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
    assert [axis.get_title() for axis in figures[0].axes[::3]] == ["object 1, axial 3", "object 2, axial 6"]


@pytest.mark.parametrize("shape", [(1, 12, 20), (8, 1, 20), (8, 12, 1), (1, 1, 1)])
def test_a_picture_without_objects_is_written_for_any_shape(tmp_path: Path, shape: tuple[int, int, int]):
    volume = Volume(np.zeros(shape, np.float32), Grid(shape, GRID.affine))
    three_planes(tmp_path / "planes.png", volume, np.zeros(shape, np.uint16))
    assert (tmp_path / "planes.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["planes.png"]
