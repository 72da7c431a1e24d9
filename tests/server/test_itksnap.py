"""ITK-SNAP's requests against this server."""

import time

import numpy as np
import pytest

from sam2_3dmed_jax import Scan
from sam2_3dmed_jax.server import app
from tests.helpers.itksnap_client import OBLIQUE, ItkSnap
from tests.helpers.running_server import running_server
from tests.helpers.scans import AFFINE, SHAPE, scan_array

pytestmark = pytest.mark.slow  # the model of each image shape is compiled


@pytest.fixture
def itksnap(server):
    """A function that returns a connected ITK-SNAP."""
    opened = []

    def connected(affine=AFFINE, version="v2/"):
        snap = ItkSnap(server.port, scan_array(), affine, version)
        snap.connect()
        opened.append(snap)
        return snap

    yield connected
    for snap in opened:
        snap.get(f"{snap.version}end_session/{snap.session}")


@pytest.fixture
def scan(checkpoint):
    return Scan(scan_array(), checkpoint, affine=AFFINE)


@pytest.mark.parametrize("version", ["v2/", ""])
def test_clicks_give_the_masks_of_a_scan_with_the_same_clicks(itksnap, scan, version):
    snap = itksnap(version=version)
    scan.click((5, 9, 10))
    first = snap.click((5, 9, 10))
    assert first.any()
    np.testing.assert_array_equal(first, scan.mask(1))
    scan.click((5, 18, 20), inside=False)
    np.testing.assert_array_equal(snap.click((5, 18, 20), foreground=False), scan.mask(1))


def test_the_orientation_that_itksnap_sends_is_used(itksnap, checkpoint):
    scan = Scan(scan_array(), checkpoint, affine=OBLIQUE)
    scan.click((5, 9, 10))
    np.testing.assert_array_equal(itksnap(OBLIQUE).click((5, 9, 10)), scan.mask(1))


def test_strokes_become_the_clicks_of_a_scribble(itksnap, scan):
    stroke = np.zeros(SHAPE, bool)
    stroke[6, 8:14, 9] = True
    scan.scribble(stroke)
    np.testing.assert_array_equal(itksnap().draw("scribble", stroke), scan.mask(1))


def test_an_outline_is_a_drawn_mask(itksnap, scan):
    outline = np.zeros(SHAPE, bool)
    outline[7, 4:9, 5:12] = True
    scan.draw(outline)
    np.testing.assert_array_equal(itksnap().draw("lasso", outline), scan.mask(1))


def test_another_label_starts_without_prompts(itksnap):
    snap = itksnap()
    first = snap.click((5, 9, 10))
    snap.click((5, 3, 4))
    snap.reset()
    np.testing.assert_array_equal(snap.click((5, 9, 10)), first)


def test_another_image_of_the_same_itksnap_replaces_the_first(itksnap, checkpoint):
    snap = itksnap()
    snap.click((5, 9, 10))
    other = ItkSnap(snap.port, scan_array()[::-1], AFFINE, session=snap.session)
    other.upload()
    scan = Scan(scan_array()[::-1], checkpoint, affine=AFFINE)
    scan.click((5, 9, 10))
    np.testing.assert_array_equal(other.click((5, 9, 10)), scan.mask(1))


def test_an_ended_session_is_gone(itksnap):
    snap = itksnap()
    snap.get(f"v2/end_session/{snap.session}")
    with pytest.raises(AssertionError, match="open the image again"):
        snap.click((5, 9, 10))
    snap.connect()  # for the end of the fixture


def test_an_idle_image_is_closed(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(app, "SWEEP_SECONDS", 0.05)
    with running_server(tmp_path, checkpoint, idle_seconds=0.1) as server:
        snap = ItkSnap(server.port, scan_array(), AFFINE)
        snap.connect()
        time.sleep(1.0)
        with pytest.raises(AssertionError, match="not open any more"):
            snap.click((5, 9, 10))
        snap.upload()  # as after opening the image again
