"""The page in headless Chromium: clicks on a CT with permuted axes, undo, objects, drawing, saving and restoring."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.server.app import application
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.server.settings import ServeSettings
from sam2_3dmed_jax.volume.io import read_grid
from tests.helpers import chromium
from tests.helpers.dicom_files import write_series
from tests.helpers.running_server import served
from tests.helpers.scans import permuted_abdomen
from tests.helpers.served_page import User

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sam2_3dmed_jax.errors.FileWarning"),
]
CT = "ct PIR.nii.gz"  # a name with a space, too
INSIDE, OUTSIDE, OTHER = (40, 56, 10), (80, 40, 10), (60, 30, 6)  # voxels of the page: right, anterior, superior


@pytest.fixture(scope="module")
def root(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    permuted_abdomen(realdata, folder / CT)
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[chromium.Page]:
    with chromium.chromium() as page:
        yield page


@pytest.fixture
def settings(checkpoint: str, root: Path, tmp_path: Path) -> ServeSettings:
    return ServeSettings(model=checkpoint, root=root, state_folder=tmp_path / "state")


@pytest.fixture
def user(settings: ServeSettings, page: chromium.Page) -> Iterator[User]:
    page.messages.clear()
    with served(application(settings)) as port:
        yield User(page, port)
        page.open("about:blank")
    assert page.messages == []  # neither errors nor anything that the security policy had to refuse


def predicted(checkpoint: str, image: Path, prompts: Path, folder: Path) -> np.ndarray:
    """Return the labels that the command writes."""
    out = folder / "predicted.nii.gz"
    assert main(["predict", checkpoint, str(image), "--prompts", str(prompts), "--out", str(out)]) == 0
    return np.asarray(nib.load(out).dataobj)


def test_clicks_on_three_planes_are_saved_as_the_mask_that_predict_writes(user, checkpoint, root, tmp_path):
    user.open(CT)
    user.click(INSIDE)
    user.click(OUTSIDE, button="right")
    user.click((62, 30, 12), "CORONAL", alt=True)
    user.wait_for_masks()
    saved, prompts = user.save("nifti", tmp_path / "nifti"), user.save("prompts", tmp_path / "json")

    (entry,) = json.loads(prompts.read_text())["objects"]
    grid = DisplayGrid(read_grid(root / CT))
    clicked = {(grid.from_file(point["voxel"]), point["label"]) for point in entry["points"]}
    assert clicked == {(INSIDE, 1), (OUTSIDE, 0), ((62, 30, 12), 0)}
    labels, image = nib.load(saved), nib.load(root / CT)
    np.testing.assert_array_equal(labels.affine, image.affine)
    expected = predicted(checkpoint, root / CT, prompts, tmp_path)
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)
    assert 0 < user.voxels(1) == (expected == 1).sum() < expected.size


def test_the_page_shows_each_voxel_of_the_saved_mask_where_the_file_has_it(user, root, tmp_path):
    user.open(CT)
    user.click(INSIDE)
    user.wait_for_masks()
    labels = np.asarray(nib.load(user.save("nifti", tmp_path / "nifti")).dataobj)
    nx, ny, nz = user.page.run("session.image.shape")
    shown = np.array(user.page.run("[...nv.drawBitmap]"), np.uint8).reshape(nz, ny, nx)
    values = np.array(user.page.run("[...nv.volumes[0].img]")).reshape(nz, ny, nx)
    grid, stored = DisplayGrid(read_grid(root / CT)), np.asarray(nib.load(root / CT).dataobj)
    for voxel in np.random.default_rng(0).integers(0, (nx, ny, nz), (500, 3)).tolist():
        x, y, z = voxel
        at = tuple(int(index) for index in grid.to_file(voxel))
        assert values[z, y, x] == max(stored[at], -1024)
        assert shown[z, y, x] == labels[at]


def test_undo_and_redo_change_masks_and_marks(user):
    user.open(CT)
    user.click(INSIDE)
    user.wait_for_masks()
    before = user.voxels(1)
    user.click(OUTSIDE, button="right")
    user.wait_for_masks("session.prompts.length === 2")
    with_outside = user.voxels(1)
    user.page.key("z", ctrl=True)
    user.wait_for_masks("session.prompts.length === 1")
    assert user.voxels(1) == before != with_outside
    user.press("#redo")
    user.wait_for_masks("session.prompts.length === 2")
    assert user.voxels(1) == with_outside
    user.page.key("z")
    user.page.key("z")
    user.page.wait("!session.prompts.length && !masks.changed.size && !session.canUndo")
    assert user.voxels(1) == 0


def test_objects_have_numbers_names_and_volumes_and_can_be_jumped_to(user):
    user.open(CT)
    user.click(INSIDE)
    user.page.key("n")
    user.click(OTHER)
    user.page.run("$('object-name').value = 'left kidney'; $('name-form').requestSubmit()")
    user.wait_for_masks("session.objects[1]?.name === 'left kidney'")
    first, second = user.page.run("[...$('object-list').children].map((item) => item.innerText)")
    assert first.split()[:3] == ["1", "object", "1"] and first.endswith("ml")
    assert second.split()[:3] == ["2", "left", "kidney"]
    exact, counted = user.page.run("[session.volumes[2], masks.voxels(2) * session.image.voxelMl]")
    assert 0 < exact <= counted
    user.page.run("goTo([0, 0, 0])")
    user.page.key("j")
    x, y, z = user.page.run("crosshair")
    nx, ny, _ = user.page.run("session.image.shape")
    assert user.page.run(f"nv.drawBitmap[{(z * ny + y) * nx + x}]") == 2


def test_a_brush_stroke_becomes_the_mask_of_the_slice_and_the_eraser_takes_it_away(user):
    user.open(CT)
    user.page.run("$('brush-size').value = 14")  # the small model sees voxels of eight
    user.page.key("p")
    user.drag((20, 50, 10), (100, 50, 10))
    user.wait_for_masks()
    inside = "[25, 60, 95].map((x) => masks.slice(1, 10)[50 * session.image.shape[0] + x])"
    assert user.page.run(inside) == [1, 1, 1]
    user.page.key("e")
    user.drag((60, 50, 10), (62, 50, 10))
    user.wait_for_masks()
    assert user.page.run(inside) == [1, 0, 1]


def test_a_stroke_that_follows_before_the_answer_keeps_the_first_one(user):
    user.open(CT)
    user.page.run("$('brush-size').value = 14")
    user.page.key("p")
    for y in (30, 70):
        user.page.drag([user.place((20, y, 10)), user.place((100, y, 10))])
    user.wait_for_masks("session.revision === 2")
    assert user.page.run("[30, 70].map((y) => masks.slice(1, 10)[y * session.image.shape[0] + 60])") == [1, 1]


def test_a_stroke_that_the_server_did_not_get_is_not_shown_after_a_reconnection(user):
    user.open(CT)
    user.page.run("retrySeconds = 5; socket.close()")
    user.page.key("p")
    user.page.drag([user.place((20, 50, 10)), user.place((60, 50, 10))])
    assert "cannot be reached" in user.page.run("$('error').textContent")
    assert user.voxels(1) > 0
    user.page.wait("socket.readyState === WebSocket.OPEN && !masks.painted && !masks.changed.size")
    assert user.voxels(1) == 0


def test_boxes_and_scribbles_become_prompts(user):
    user.open(CT)
    user.page.key("b")
    user.drag((30, 40, 10), (50, 60, 10))
    user.page.wait("session.prompts.length === 1", 120)
    (box,) = user.page.run("session.prompts")
    assert [sorted(pair) for pair in zip(box["first"], box["last"], strict=True)] == [[30, 50], [40, 60], [10, 10]]
    user.page.key("s")
    user.drag((70, 40, 12), (80, 44, 12))
    user.page.wait("session.prompts.some(({ kind, inside }) => kind === 'point' && inside)", 120)
    user.drag((20, 40, 12), (25, 44, 12), alt=True)
    user.page.wait("session.prompts.some(({ kind, inside }) => kind === 'point' && !inside)", 120)


def test_reload_and_a_server_that_starts_again_restore_prompts_names_and_masks(settings, page):
    with served(application(settings)) as port:
        user = User(page, port)
        user.open(CT)
        user.click(INSIDE)
        user.page.run("$('object-name').value = 'spleen'; $('name-form').requestSubmit()")
        user.wait_for_masks("session.objects[0].name === 'spleen'")
        before = user.voxels(1)
        user.reload()
        user.wait_for_masks()
        assert user.voxels(1) == before > 0
        user.click(OUTSIDE, button="right")
        user.wait_for_masks("session.prompts.length === 2")
        before = user.voxels(1)
    page.wait("$('connection').textContent !== 'Connected'")
    with served(application(settings), port):
        page.wait("$('connection').textContent === 'Connected'")
        user.wait_for_masks("session.prompts.length === 2")
        assert user.voxels(1) == before
        assert page.run("session.objects[0].name") == "spleen"
        page.open("about:blank")


def test_an_uploaded_dicom_folder_is_saved_as_dicom_seg(user, tmp_path):
    array = np.random.default_rng(0).normal(0, 100, (6, 40, 44)).astype(np.int16)
    write_series(tmp_path / "series", array=array)
    user.page.open(user.address)
    user.page.wait("$('open-dialog').open && $('image-list').children.length === 1")
    user.page.choose_files("#pick-folder", [tmp_path / "series"])
    user.wait_for_image()
    user.click((20, 20, 3))
    user.wait_for_masks()
    saved = user.save("dicom-seg", tmp_path / "saved")
    labels = user.save("nifti", tmp_path / "saved")
    import pydicom

    segmentation = pydicom.dcmread(saved)
    assert segmentation.Modality == "SEG" and segmentation.PatientName == "Doe^Jane"
    assert segmentation.pixel_array.sum() == (np.asarray(nib.load(labels).dataobj) == 1).sum() > 0


def test_an_uploaded_nifti_file_is_opened_and_a_damaged_one_is_explained(user, root, tmp_path):
    (tmp_path / "damaged.nii.gz").write_bytes(b"not a NIfTI file")
    user.page.open(user.address)
    user.page.wait("$('open-dialog').open")
    user.page.choose_files("#pick-file", [tmp_path / "damaged.nii.gz"])
    user.page.wait("/gzip|NIfTI/.test($('open-message').textContent)")
    user.page.choose_files("#pick-file", [root / CT])
    user.wait_for_image()
    assert user.page.run("session.image.shape") == [122, 101, 16]


def test_the_wheel_shows_the_next_slice(user):
    user.open(CT)
    x, y = user.place((40, 45, 10))
    user.page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=120)
    user.page.wait("Math.abs(crosshair[2] - 10) === 1", 10)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (820, 1180), (1180, 820)])
def test_everything_fits_a_desktop_and_a_tablet(user, width, height):
    user.open(CT, width, height)
    assert user.page.run("document.documentElement.scrollWidth") <= width
    assert user.page.run("document.documentElement.scrollHeight") <= height
    tiles = user.page.run("nv.screenSlices.map(({ axCorSag, leftTopWidthHeight: at }) => [axCorSag, at[2], at[3]])")
    assert sorted(kind for kind, *_ in tiles) == [0, 1, 2, 4]
    assert all(min(tile[1:]) >= 350 for tile in tiles if tile[0] == 0)
    shown = user.page.run(
        "['.notice', '#help-button', '#tools', '#undo', '#connection'].map((name) => {"
        "const box = document.querySelector(name).getBoundingClientRect(); return [box.left, box.right, box.top]; })"
    )
    assert all(0 <= left < right <= width and top < height for left, right, top in shown)


def test_question_mark_lists_the_shortcuts_and_every_one_of_them_works(user):
    user.open(CT)
    user.page.key("?")
    assert user.page.run("$('help-dialog').open")
    user.page.run("$('help-dialog').close()")
    for key, tool in {"i": "inside", "o": "outside", "b": "box", "s": "scribble", "p": "brush", "e": "eraser"}.items():
        user.page.key(key)
        assert user.page.run("tool") == tool
    user.place((40, 45, 10))
    user.page.key("ArrowDown")
    assert user.page.run("crosshair") == [40, 45, 9]
    user.page.key("l")
    user.page.click(*user.place((30, 60, 5)))
    assert user.page.run("[crosshair, session.prompts]") == [[30, 60, 5], []]
    user.page.key("w")
    assert user.page.run("$('window').value") == "Lung"
    user.page.key("f")
    assert user.page.run("$('contour').checked")
    user.page.key("h")
    assert user.page.run("nv.drawOpacity") == 0
