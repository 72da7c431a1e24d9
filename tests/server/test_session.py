"""Sessions: events, interruption, restoring, and eviction."""

import asyncio
import gc
import threading
import time
import weakref

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import Scan
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference import zoom
from sam2_3dmed_jax.server.events import Closed, EventStream, Failed, ProgressMade, SliceChanged, StateChanged
from sam2_3dmed_jax.server.session import InteractiveSession
from sam2_3dmed_jax.server.sessions import BusyError, Sessions, UnknownSessionError
from sam2_3dmed_jax.server.settings import ServeSettings
from tests.helpers.counted_compilations import counted_compilations
from tests.helpers.scans import scan_file
from tests.helpers.small_fixtures import WARM_UP

CLICK, OTHER = (5, 9, 10), (9, 15, 18)


class Screen:
    """The masks that a page would show."""

    def __init__(self, session):
        self.masks, self.events = {}, []
        session.subscribe(self.put)

    def put(self, event):
        self.events.append(event)
        if isinstance(event, SliceChanged):
            self.masks[event.key] = event.mask

    def volume(self, scan, object_id):
        shown = np.zeros(scan.shape, bool)
        for key, mask in self.masks.items():
            if key.object_id == object_id:
                shown[(slice(None),) * scan.slice_axis + (key.slice,)] = mask
        return shown


def complete(session, object_id=1):
    return session.read(lambda scan: scan.mask(object_id)).result()


def test_the_events_add_up_to_the_masks_of_the_scan(session):
    screen = Screen(session)
    session.change(lambda scan: scan.click(CLICK)).result()
    session.change(lambda scan: scan.click(OTHER, object=2)).result()
    for object_id in (1, 2):
        np.testing.assert_array_equal(complete(session, object_id), screen.volume(session.scan, object_id))


def test_an_idle_session_has_compiled_all_programs_of_later_clicks(image, predictor, monkeypatch):
    monkeypatch.setattr(Scan, "warm_up", WARM_UP)
    monkeypatch.setattr(predictor, "warm", set())
    jax.clear_caches()
    session = InteractiveSession(lambda progress: Scan(image, predictor, progress=progress))
    try:
        screen = Screen(session)
        while session.state.activity != "idle":
            time.sleep(0.1)
        prepared = [event for event in screen.events if isinstance(event, ProgressMade) and "model" in event.what]
        assert prepared[-1].done == prepared[-1].total == len(predictor.warm) <= 8
        with counted_compilations() as compiled:
            session.change(lambda scan: scan.click(CLICK)).result()
            session.change(lambda scan: scan.click(OTHER, inside=False)).result()
            session.change(lambda scan: scan.box((2, 3, 10), (9, 12, 12), object=2)).result()
            complete(session, 2)
        assert compiled == []
    finally:
        session.close()


def test_a_click_interrupts_the_preparation_of_the_model(image, predictor, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow(scan, cancel, first_only=False):
        started.set()
        go_on.wait(60)
        return not cancel.is_set()

    monkeypatch.setattr(Scan, "warm_up", slow)
    session = InteractiveSession(lambda progress: Scan(image, predictor, progress=progress))
    try:
        assert started.wait(60)
        clicked = session.change(lambda scan: scan.click(CLICK))
        go_on.set()
        clicked.result(60)
        assert complete(session).any() or session.state.is_complete
    finally:
        session.close()


def test_a_zoom_changes_the_masks_that_are_shown(session, monkeypatch):
    # Masks of random weights touch every border, and regions would grow to the whole slice.
    monkeypatch.setattr(zoom, "touches_border", lambda *_: False)
    screen = Screen(session)
    session.change(lambda scan: scan.click(CLICK)).result()
    whole = complete(session)
    revision = session.state.revision
    session.change(lambda scan: scan.set_zoom(6.0)).result()
    zoomed = complete(session)
    assert (zoomed != whole).any() and session.state.revision == revision + 1
    np.testing.assert_array_equal(zoomed, screen.volume(session.scan, 1))


def test_the_clicked_slice_comes_first_as_a_preview(session):
    screen = Screen(session)
    session.change(lambda scan: scan.click(CLICK)).result()
    complete(session)
    first = next(event for event in screen.events if isinstance(event, SliceChanged))
    assert (first.key, first.is_preview) == ((1, CLICK[session.scan.slice_axis]), True)
    assert session.state.click_seconds > 0


def test_a_page_that_connects_later_shows_the_same(session):
    session.change(lambda scan: scan.click(CLICK)).result()
    expected = complete(session)
    late = Screen(session)
    np.testing.assert_array_equal(late.volume(session.scan, 1), expected)
    assert isinstance(late.events[0], StateChanged) and late.events[0].state.is_complete


def test_undo_and_clear_remove_masks_from_the_screen(session):
    screen = Screen(session)
    session.change(lambda scan: scan.click(CLICK)).result()
    assert complete(session).any()
    session.change(lambda scan: scan.undo())
    session.read(lambda scan: None).result()  # after the screen was updated
    assert not screen.volume(session.scan, 1).any()
    assert (session.state.prompted, session.state.can_undo, session.state.can_redo) == (frozenset(), False, True)


def test_a_change_interrupts_propagation(session):
    session.change(lambda scan: scan.click(CLICK)).result()
    complete(session)  # compiles
    arrived, go_on = threading.Event(), threading.Event()

    def wait(event):
        if isinstance(event, SliceChanged) and not event.is_preview and event.revision == 2:
            arrived.set()
            go_on.wait(60)

    session.subscribe(wait)
    session.change(lambda scan: scan.click(OTHER, object=2))
    assert arrived.wait(60)
    last = session.change(lambda scan: scan.click((2, 4, 5), object=3))
    go_on.set()
    last.result()
    screen = Screen(session)
    for object_id in (1, 2, 3):
        np.testing.assert_array_equal(complete(session, object_id), screen.volume(session.scan, object_id))


def test_a_mistake_changes_nothing_and_the_session_goes_on(session):
    with pytest.raises(UserError, match="outside"):
        session.change(lambda scan: scan.click((99, 0, 0))).result()
    assert session.state.revision == 0
    session.change(lambda scan: scan.click(CLICK)).result()
    assert complete(session).any()


def test_a_change_without_propagation_computes_nothing_until_it_is_read(session):
    screen = Screen(session)
    session.change(lambda scan: scan.click(CLICK), propagate=False).result()
    assert not any(isinstance(event, SliceChanged) for event in screen.events)
    assert complete(session).any()


def test_without_a_listener_no_preview_is_computed(session):
    previews = []
    session.scan.preview = lambda: previews.append(1)
    session.change(lambda scan: scan.click(CLICK)).result()
    assert complete(session).any() and not previews


def test_prompts_are_restored(tmp_path, image, predictor):
    def opened():
        return InteractiveSession(lambda progress: Scan(image, predictor, progress=progress), tmp_path / "prompts.json")

    first = opened()
    drawn = np.zeros(first.scan.shape, np.uint8)
    drawn[8:10, 5:9, 6:12] = 1
    first.change(lambda scan: scan.name_object(2, "left kidney", "#b96653")).result()
    first.change(lambda scan: scan.click(CLICK, object="left kidney")).result()
    first.change(lambda scan: scan.draw(drawn)).result()
    masks = [complete(first, object_id) for object_id in (1, 2)]
    first.close()
    second = opened()
    for object_id, mask in zip((1, 2), masks, strict=True):
        np.testing.assert_array_equal(complete(second, object_id), mask)
    assert second.state.objects[2].name == "left kidney"
    second.change(lambda scan: scan.clear()).result()
    second.close()
    third = opened()
    assert not third.scan.prompts
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.json"]
    third.close()


def test_prompts_are_stored_before_the_preview_ends(tmp_path, image, predictor):
    stored = tmp_path / "prompts.json"
    session = InteractiveSession(lambda progress: Scan(image, predictor, progress=progress), stored)
    Screen(session)
    preview, seen = session.scan.preview, []

    def wait_for_the_file_and_preview():
        for _ in range(3000):
            if stored.exists():
                break
            time.sleep(0.01)
        seen.append(stored.exists())
        return preview()

    session.scan.preview = wait_for_the_file_and_preview
    session.change(lambda scan: scan.click(CLICK)).result()
    complete(session)
    session.close()
    assert seen == [True]


def test_a_closed_session_reports_that_it_has_ended(session):
    screen = Screen(session)
    assert session.close()
    assert isinstance(screen.events[-1], Closed)
    with pytest.raises(UserError, match="has ended"):
        session.change(lambda scan: scan.click(CLICK))


def test_a_failure_of_propagation_is_reported_once(session):
    screen = Screen(session)
    session.scan.propagate = lambda *_: 1 / 0
    session.change(lambda scan: scan.click(CLICK)).result()
    session.read(lambda scan: None).result()
    assert [type(event) for event in screen.events].count(Failed) == 1


def test_unread_events_about_one_slice_are_replaced(session):
    async def unread():
        stream = EventStream()
        unsubscribe = session.subscribe(stream.put)
        for xyz in (CLICK, OTHER, (2, 4, 5)):
            await asyncio.wrap_future(session.change(lambda scan, xyz=xyz: scan.click(xyz)))
        expected = await asyncio.wrap_future(session.read(lambda scan: scan.mask(1)))
        await asyncio.sleep(0.1)
        events = await stream.take()
        unsubscribe()
        return expected, events

    expected, events = asyncio.run(unread())
    keys = [event.key for event in events if isinstance(event, SliceChanged)]
    assert len(keys) == len(set(keys)) <= session.scan.shape[session.scan.slice_axis]
    shown = np.zeros(session.scan.shape, bool)
    for event in events:
        if isinstance(event, SliceChanged):
            shown[(slice(None),) * session.scan.slice_axis + (event.key.slice,)] = event.mask
    np.testing.assert_array_equal(shown, expected)


@pytest.fixture
def sessions(tmp_path, checkpoint):
    settings = ServeSettings(checkpoint, state_folder=tmp_path / "state", max_sessions=2, idle_seconds=0.01)
    sessions = Sessions(settings)
    yield sessions
    sessions.close_all(60)


def test_an_open_image_has_one_session_and_idle_ones_are_closed(tmp_path, sessions):
    images = [scan_file(tmp_path / f"{name}.nii.gz") for name in "abc"]
    first, second = sessions.open(images[0]), sessions.open(images[1])
    assert sessions.open(images[0]) == first
    with sessions.get(first).in_use():
        third = sessions.open(images[2])
        with pytest.raises(UnknownSessionError):
            sessions.get(second)
        with sessions.get(third).in_use(), pytest.raises(BusyError, match="2 images"):
            sessions.open(images[1])
        threading.Event().wait(0.05)
        sessions.close_idle()
        assert len(sessions) == 1
    threading.Event().wait(0.05)
    sessions.close_idle()
    assert len(sessions) == 0


def test_a_closed_session_frees_the_features_of_its_image(tmp_path, sessions):
    key = sessions.open(scan_file(tmp_path / "a.nii.gz"))
    session = sessions.get(key)
    session.change(lambda scan: scan.click(CLICK)).result()
    store = session.read(lambda scan: weakref.ref(scan._store)).result()
    gc.disable()
    try:
        assert session.close() and store() is None
    finally:
        gc.enable()


def test_a_session_that_is_closed_during_its_work_frees_the_features_too(tmp_path, sessions):
    session = sessions.get(sessions.open(scan_file(tmp_path / "a.nii.gz")))
    session.change(lambda scan: scan.click(CLICK)).result()
    while (features := vars(session.scan).get("_store")) is None:
        time.sleep(0.001)
    store = weakref.ref(features)
    del features
    gc.disable()
    try:
        assert session.close() and store() is None
    finally:
        gc.enable()


def test_names_of_prompt_files_do_not_contain_names_of_images(tmp_path, sessions):
    sessions.get(sessions.open(scan_file(tmp_path / "DOE_JANE.nii.gz"))).change(lambda scan: scan.click(CLICK)).result()
    sessions.close_all(60)
    (file,) = (tmp_path / "state" / "prompts").iterdir()
    assert "DOE" not in file.name and "DOE" not in file.read_text()
