"""The widget in JupyterLab and headless Chromium: clicks on a CT with permuted axes, undo, objects, and mistakes."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.volume.io import read_grid
from tests.helpers import chromium
from tests.helpers.jupyter_lab import OpenNotebook, jupyter_lab, write_notebook
from tests.helpers.scans import permuted_abdomen, small_model
from tests.helpers.widget_user import CANVAS, PLANES, WidgetUser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sam2_3dmed_jax.errors.FileWarning"),
]
INSIDE, OUTSIDE, OTHER = (40, 56, 10), (80, 40, 10), (62, 30, 12)  # right, anterior, superior
SHOW, SAVE = range(2)
CELLS = [
    "from sam2_3dmed_jax.notebook import VolumeWidget\n"
    "if 'widget' in globals():\n"
    "    widget.close()\n"
    "widget = VolumeWidget('ct.nii.gz', 'model')\n"
    "widget",
    "widget.scan.save('seg.nii.gz')\nwidget.scan.save_prompts('prompts.json')\nprint(widget.scan.objects[1].name)",
]


@pytest.fixture(scope="module")
def folder(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    permuted_abdomen(realdata, folder / "ct.nii.gz")
    save_model(small_model(), folder / "model")
    write_notebook(folder, CELLS)
    return folder


@pytest.fixture(scope="module")
def notebook(folder: Path) -> Iterator[OpenNotebook]:
    with jupyter_lab(folder) as address, chromium.chromium() as page:
        yield OpenNotebook(page, address, 1280, 900)


@pytest.fixture
def user(folder: Path, notebook: OpenNotebook) -> Iterator[WidgetUser]:
    notebook.page.messages.clear()
    notebook.page.resize(1280, 900)
    notebook.run_cell(SHOW)
    yield WidgetUser(notebook.page, DisplayGrid(read_grid(folder / "ct.nii.gz")).shape)
    assert notebook.page.messages == []


def test_clicks_on_two_planes_are_saved_as_the_mask_that_predict_writes(user, notebook, folder):
    user.click(INSIDE)
    user.click(OUTSIDE, button="right")
    user.click(OTHER, "Coronal", alt=True)
    user.wait_for_masks()
    notebook.run_cell(SAVE)

    (entry,) = json.loads((folder / "prompts.json").read_text())["objects"]
    grid = DisplayGrid(read_grid(folder / "ct.nii.gz"))
    clicked = {(grid.from_file(point["voxel"]), point["label"]) for point in entry["points"]}
    assert clicked == {(INSIDE, 1), (OUTSIDE, 0), (OTHER, 0)}
    words = ["predict", "model", "ct.nii.gz", "--prompts", "prompts.json", "--out", "predicted.nii.gz"]
    assert main([str(folder / word) if (folder / word).exists() or "." in word else word for word in words]) == 0
    labels, expected = (np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) for name in ("seg", "predicted"))
    np.testing.assert_array_equal(labels, expected)
    assert 0 < (labels == 1).sum() < labels.size


@pytest.mark.parametrize(
    "plane",
    ["Axial", pytest.param("Coronal", marks=pytest.mark.long), pytest.param("Sagittal", marks=pytest.mark.long)],
)
def test_the_mask_is_shown_where_the_saved_file_has_it(user, notebook, folder, plane):
    user.click(INSIDE)
    user.wait_for_masks()
    notebook.run_cell(SAVE)
    labels, grid = np.asarray(nib.load(folder / "seg.nii.gz").dataobj), DisplayGrid(read_grid(folder / "ct.nii.gz"))
    user.show(INSIDE, plane)
    across, *others = PLANES[plane]
    # Away from the border, which has letters, and from the click.
    voxels = np.random.default_rng(0).integers([10, 10, 2], np.subtract(grid.shape, [10, 10, 2]), (300, 3))
    voxels[:, across] = INSIDE[across]
    voxels = voxels[(np.abs(voxels - INSIDE)[:, others] > [6, 2 if plane != "Axial" else 6]).any(axis=1)]
    saved = [labels[tuple(int(index) for index in grid.to_file(voxel))] == 1 for voxel in voxels.tolist()]
    shown = user.colours(voxels.tolist())
    assert any(saved) and not all(saved)
    # Numbers of masks and clicks cover a few voxels.
    assert np.mean(np.equal(saved, shown)) > 0.97


def test_undo_redo_and_clear_change_the_masks(user):
    user.click(INSIDE)
    user.wait_for_masks()
    volume = user.page.run(user.text(".volume"))
    user.press("Undo")
    user.page.wait(f"{user.text('.volume')} === 'no mask'")
    user.press("Redo")
    user.page.wait(f"{user.text('.volume')} === '{volume}'", 120)
    user.press("Clear")
    user.page.wait(f"{user.text('.volume')} === 'no mask'")
    user.page.run(f"{CANVAS}.focus()")
    user.page.key("z", ctrl=True)
    user.page.wait(f"{user.text('.volume')} === '{volume}'", 120)


def test_objects_have_names_and_a_mistake_is_explained(user, notebook):
    rename = (
        "(() => {{ const input = document.querySelector('.sam2-3dmed .name'); input.value = '{}'; "
        "input.dispatchEvent(new Event('change')); }})()"
    )
    user.click(INSIDE)
    user.page.run(rename.format("spleen"))
    user.page.wait(f"{user.text('.label')} === 'spleen'")
    user.press("New object")
    user.click(OTHER)
    user.wait_for_masks(2)
    user.page.run(rename.format("spleen"))
    user.page.wait(f"/another object is 'spleen'/.test({user.text('.error')})")
    assert notebook.run_cell(SAVE) == "spleen\n"


def test_a_box_is_drawn_on_the_axial_plane(user, notebook, folder):
    user.press("▭ Box")
    user.show(INSIDE, "Axial")
    user.page.drag([user.place((30, 40, 10)), user.place((40, 50, 10)), user.place((50, 60, 10))])
    user.wait_for_masks()
    notebook.run_cell(SAVE)
    (entry,) = json.loads((folder / "prompts.json").read_text())["objects"]
    grid = DisplayGrid(read_grid(folder / "ct.nii.gz"))
    (box,) = entry["boxes"]
    corners = np.sort([grid.from_file(box["voxel"][:3]), grid.from_file(box["voxel"][3:])], axis=0)
    np.testing.assert_array_equal(corners, [(30, 40, 10), (50, 60, 10)])


def test_prompts_and_masks_are_shown_again_after_a_reload(user, notebook):
    user.click(INSIDE)
    user.wait_for_masks()
    volume = user.page.run(user.text(".volume"))
    notebook.save()
    notebook.reload()
    WidgetUser(notebook.page, user.shape).wait_for_masks()
    assert user.page.run(user.text(".volume")) == volume


def test_slices_are_shown_while_the_slider_moves(user):
    user.press("Sagittal")
    shown = user.page.run(
        "(async () => { const slider = document.querySelector('.sam2-3dmed .slice'), seen = new Set(); "
        "for (let index = 20; index < 80; index++) { slider.value = index; slider.dispatchEvent(new Event('input')); "
        f"await new Promise((done) => setTimeout(done, 30)); seen.add({CANVAS}.toDataURL()); }} return seen.size; }})()"
    )
    assert shown >= 5


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (820, 1180)])
def test_everything_fits_a_desktop_and_a_tablet(user, width, height):
    user.page.resize(width, height)
    user.page.run("new Promise((done) => setTimeout(done, 500))")
    shown = user.page.run(
        "[...document.querySelectorAll('.sam2-3dmed :is(button, input, select, canvas, p:not(:empty):not([hidden]))')]"
        ".map((it) => { const { left, right } = it.getBoundingClientRect(); return [left, right]; })"
    )
    left, right = user.page.run(
        "(({ left, right }) => [left, right])(document.querySelector('.sam2-3dmed').getBoundingClientRect())"
    )
    assert right <= width and len(shown) > 12
    assert all(left <= first < last <= right for first, last in shown)
    assert "research use only" in user.page.run(user.text(".notice"))
