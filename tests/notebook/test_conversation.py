"""Messages of the widget: clicks, undo, objects, slices of the image, and mistakes, in a session with a small model."""

import itertools

import numpy as np
import pytest

from sam2_3dmed_jax import Scan
from sam2_3dmed_jax.notebook.conversation import WidgetConversation
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.server.session import InteractiveSession
from sam2_3dmed_jax.volume.intensity import WINDOWS, apply_window
from tests.helpers.scans import scan_array
from tests.helpers.widget_screen import WidgetScreen

CLICK, OTHER = (5, 9, 10), (9, 15, 18)  # voxels of the file


@pytest.fixture
def screen():
    return WidgetScreen()


@pytest.fixture
def conversation(session, screen):
    conversation = WidgetConversation(session, screen.send)
    conversation.receive({"type": "ready"})
    return conversation


@pytest.fixture
def grid(session):
    return DisplayGrid(session.scan.volume.grid)


def click(grid, voxel, number=1, inside=True):
    """Return the message of a click on a voxel of the file."""
    return {"type": "click", "object": number, "voxel": grid.from_file(voxel), "inside": inside}


def on_the_page(mask, grid):
    """Return a mask of the file on the grid of the page, `[x, y, z]`, voxel by voxel."""
    shown = np.zeros(grid.shape, bool)
    for voxel in itertools.product(*map(range, grid.shape)):
        shown[voxel] = mask[tuple(int(index) for index in grid.to_file(voxel))]
    return shown


def test_clicks_show_the_mask_that_a_scan_has_with_the_same_clicks(image, predictor, conversation, screen, grid):
    conversation.receive(click(grid, CLICK))
    conversation.receive(click(grid, OTHER, inside=False))
    screen.wait_for_masks(2)
    scan = Scan(image, predictor)
    scan.click(CLICK)
    scan.click(OTHER, inside=False)
    expected = on_the_page(scan.mask(1), grid)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(screen.mask(1), expected)


def test_undo_removes_the_mask_and_redo_brings_it_back(conversation, screen, grid):
    conversation.receive(click(grid, CLICK))
    screen.wait_for_masks(1)
    before = screen.mask(1)
    conversation.receive({"type": "undo"})
    screen.wait(lambda: screen.last("state")["canRedo"])
    assert before.any() and not screen.mask(1).any() and not screen.prompts
    conversation.receive({"type": "redo"})
    screen.wait_for_masks(1)
    np.testing.assert_array_equal(screen.mask(1), before)


def test_objects_have_their_own_masks_names_and_volumes(session, conversation, screen, grid):
    conversation.receive({"type": "name", "object": 2, "name": "left kidney"})
    conversation.receive(click(grid, CLICK))
    conversation.receive(click(grid, OTHER, number=2))
    screen.wait_for_masks(2)
    assert [it["name"] for it in screen.last("state")["objects"]] == ["object 1", "left kidney"]
    for number in (1, 2):
        mask = session.read(lambda scan, number=number: scan.mask(number)).result()
        np.testing.assert_array_equal(screen.mask(number), on_the_page(mask, grid))
    assert screen.last("state")["volumes"]["1"] > 0
    conversation.receive({"type": "clear", "object": 1})
    screen.wait_for_masks(1)
    assert not screen.mask(1).any() and screen.mask(2).any()


@pytest.mark.parametrize(("plane", "columns", "rows"), [(0, 0, 1), (1, 0, 2), (2, 1, 2)])
def test_slices_are_in_radiological_view_for_permuted_axes(conversation, screen, grid, plane, columns, rows):
    across, index, shape = 3 - columns - rows, 3, grid.shape
    conversation.receive({"type": "picture", "plane": plane, "index": index, "window": 0})
    shown = screen.picture(shape[rows], shape[columns])
    stored = apply_window(scan_array(), *WINDOWS["soft_tissue"])
    for v, u in itertools.product(range(shape[rows]), range(shape[columns])):
        voxel = [0, 0, 0]
        # The patient's right or front is on the left, the front or the head at the top.
        voxel[across], voxel[columns], voxel[rows] = index, shape[columns] - 1 - u, shape[rows] - 1 - v
        expected = stored[tuple(int(it) for it in grid.to_file(voxel))] * 255
        assert abs(int(shown[v, u]) - expected) <= 0.51  # rounded to 8 bits


def test_the_description_has_the_letters_of_the_planes_and_windows_of_the_modality(conversation, screen):
    opened = screen.last("opened")
    assert [(it["name"], it["letters"]) for it in opened["planes"]] == [
        ("axial", "APRL"), ("coronal", "SIRL"), ("sagittal", "SIAP"),
    ]  # fmt: skip
    assert opened["image"]["modality"] == "CT" and opened["image"]["windows"][0]["name"] == "Soft tissue"


def test_a_second_view_gets_everything_again(conversation, screen, grid):
    conversation.receive(click(grid, CLICK))
    screen.wait_for_masks(1)
    before = screen.mask(1)
    screen.messages.clear()
    screen.parts.clear()
    conversation.receive({"type": "ready"})
    screen.wait_for_masks(1)
    np.testing.assert_array_equal(screen.mask(1), before)


def test_prompts_of_a_scan_that_is_passed_are_shown(image, predictor, screen, grid):
    scan = Scan(image, predictor)
    scan.click(CLICK)
    session = InteractiveSession(lambda progress: scan)
    WidgetConversation(session, screen.send).receive({"type": "ready"})
    screen.wait_for_masks(1)
    assert screen.prompts[0]["voxel"] == grid.from_file(CLICK)
    session.close()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "click", "object": 1, "voxel": [999, 0, 0], "inside": True}, "a voxel of an image of 22 x 26 x 14"),
        ({"type": "clear", "object": 7}, "does not exist"),
        ({"type": "picture", "plane": 3, "index": 0, "window": 0}, "plane"),
        ({"type": "picture", "plane": 0, "index": 99, "window": 0}, "index"),
        ({"type": "picture", "plane": 0}, "index"),
        ({"type": "open", "image": "/etc/passwd"}, "another widget"),
        ({"type": "unknown"}, "give one of"),
        (["click"], "message"),
    ],
)
def test_mistakes_are_shown_and_the_widget_goes_on(conversation, screen, grid, message, reason):
    conversation.receive(message)
    screen.wait(lambda: screen.last("error"))
    assert reason in screen.last("error")["message"]
    conversation.receive({"type": "picture", "plane": 0, "index": 0, "window": 0})
    assert len(screen.pictures) == 1


def test_failures_of_the_kernel_are_shown(session, conversation, screen, grid):
    session.scan.click = lambda *_, **__: 1 / 0
    conversation.receive(click(grid, CLICK))
    screen.wait(lambda: screen.last("error"))
    assert screen.last("error")["message"] == "an internal error occurred; the log contains it"


def test_a_closed_session_is_reported(session, conversation, screen, grid):
    session.close()
    assert "run its cell again" in screen.last("gone")["message"]
    conversation.receive(click(grid, CLICK))
    assert "has ended" in screen.last("error")["message"]
