"""The overlay: enlarged slices around the prompts of each object, whole slices, display window, slice numbers."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.pictures import overlay as overlay_module
from sam2_3dmed_jax.pictures.display_window import display_window
from sam2_3dmed_jax.pictures.overlay import overlay
from sam2_3dmed_jax.pictures.view import slices_through, zoom_box
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import WINDOWS

SHAPE = (40, 200, 160)
SPACING = (2.0, 0.5, 1.0)  # dz, dy, dx in mm


def volume_of(array: np.ndarray, modality: str = "CT", flip: int = 1) -> Volume:
    depth, height, width = array.shape
    dz, dy, dx = SPACING
    return Volume(array, Grid((width, height, depth), np.diag([-dx, -dy, flip * dz, 1.0])), modality)


def click(d: int, h: float, w: float, label: int = 1, object_id: int = 1) -> VoxelPrompt:
    return VoxelPrompt(object_id, d, ((w, h),), (label,))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The drawn figures, kept open."""
    kept: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(overlay_module, "write_figure_with_legend", lambda figure, *_: kept.append(figure))
    yield kept
    plt.close("all")


def titles(figure: plt.Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


@pytest.mark.parametrize(("flip", "numbers"), [(1, [19, 20, 21, 22]), (-1, [20, 19, 18, 17])])
def test_a_small_object_has_a_row_of_enlarged_slices_numbered_as_in_the_file(figures, flip, numbers):
    labels = np.zeros(SHAPE, np.uint16)
    labels[20:22, 100:104, 60:63] = 1
    overlay("unused", volume_of(np.zeros(SHAPE, np.float32), flip=flip), labels, None, [click(20, 102, 61)])
    assert titles(figures[0]) == [
        *(f"object 1, k = {number} (30 mm wide)" for number in numbers),
        *(f"k = {number}" for number in numbers),
    ]
    axis = figures[0].axes[0]
    (x0, x1), (y1, y0) = axis.get_xlim(), axis.get_ylim()
    assert (x1 - x0) * SPACING[2] == pytest.approx(30, abs=1) == (y1 - y0) * SPACING[1]
    assert x0 < 60 < 62 < x1 and y0 < 100 < 103 < y1


def test_an_object_without_a_mask_is_shown_around_its_prompt(figures):
    prompts = [click(39, -0.5, 159.5), click(39, 199, 0, label=0)]
    overlay("unused", volume_of(np.zeros(SHAPE, np.float32)), np.zeros(SHAPE, np.uint16), None, prompts)
    assert titles(figures[0])[3].startswith("object 1, k = 39 (") and titles(figures[0])[-1] == "k = 39"
    axis = figures[0].axes[3]
    assert axis.get_xlim()[1] == 159.5 and axis.get_ylim()[1] == -0.5


@pytest.mark.parametrize("shape", [(1, 12, 20), (8, 1, 20), (1, 1, 1)])
@pytest.mark.parametrize("prompts", [[], [click(0, 0, 0)]])
def test_a_picture_is_written_for_any_shape(tmp_path: Path, shape: tuple[int, int, int], prompts: list[VoxelPrompt]):
    overlay(tmp_path / "sheet.png", volume_of(np.zeros(shape, np.float32)), np.zeros(shape, np.uint16), None, prompts)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_all_slices_of_a_small_object_and_the_prompted_slices_of_a_large_one_are_shown():
    present = np.zeros(40, bool)
    present[38:] = True
    assert slices_through(present, [], 4, 8) == [36, 37, 38, 39]
    present[:] = True
    shown = slices_through(present, [click(7, 0, 0), click(30, 0, 0)], 4, 8)
    assert len(shown) == 8 and {0, 7, 30, 39} <= set(shown)
    assert slices_through(np.zeros(2, bool), [click(1, 0, 0)], 4, 8) == [0, 1]


def test_the_enlarged_part_of_an_object_that_leaked_is_around_its_prompt():
    mask = np.ones(SHAPE, bool)
    (z0, z1), (y0, y1), (x0, x1) = zoom_box(mask, [click(20, 150, 60)], SPACING, (1, 2))
    assert (z0, z1) == (0, 39) and (y1 - y0 + 1, x1 - x0 + 1) == (120, 96)  # 0.6 of each side
    assert y1 == 199 and (x0 + x1) / 2 == pytest.approx(60, abs=0.5)


def test_a_mask_far_from_its_prompt_does_not_widen_the_enlarged_part():
    mask = np.zeros(SHAPE, bool)
    mask[:, :20, :20] = True
    _, (y0, y1), (x0, x1) = zoom_box(mask, [click(20, 150, 120)], SPACING, (1, 2))
    assert ((y1 - y0 + 1) * 0.5, x1 - x0 + 1) == (30, 30) and y0 < 150 < y1 and x0 < 120 < x1  # mm


@pytest.mark.parametrize(
    ("value", "modality", "given", "expected"),
    [
        (50, "CT", None, WINDOWS["soft_tissue"]),
        (-850, "CT", None, WINDOWS["lung"]),
        (700, "CT", None, WINDOWS["bone"]),
        (-850, "CT", "40,400", (40.0, 400.0)),
        (700, "MR", "600,500", (600.0, 500.0)),  # in the values of the scan, not in HU
    ],
)
def test_the_window_shows_what_surrounds_the_prompt_unless_one_is_given(value, modality, given, expected):
    array = np.full(SHAPE, 40, np.float32)
    array[10, 80:140, 40:80] = value
    assert display_window(volume_of(array, modality), [click(10, 110, 60)], given=given) == expected


def test_an_mr_scan_has_a_window_of_its_own_values():
    array = np.linspace(0, 1000, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    level, width = display_window(volume_of(array, "MR"), [click(10, 110, 60)], "lung")
    assert level == pytest.approx(500, rel=0.01) and width == pytest.approx(990, rel=0.01)


def test_a_window_that_does_not_exist_is_reported_by_its_flag():
    with pytest.raises(UserError, match="--window is 'lungs', expected LEVEL,WIDTH"):
        display_window(volume_of(np.zeros((1, 2, 2), np.float32)), [], given="lungs")
