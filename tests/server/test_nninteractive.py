"""nnInteractive's own clients against this server, and what viewers rely on beyond them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax import Scan
from sam2_3dmed_jax.server.nninteractive.axes import guessed_affine
from tests.helpers.scans import scan_array

pytestmark = pytest.mark.slow  # a session of the client takes half a minute

DRIVER = Path(__file__).parents[1] / "helpers" / "drive_nninteractive.py"
SPACING = (3.0, 0.7, 0.8)


@pytest.fixture(scope="module")
def steps(tmp_path_factory, server):
    """The client's mask after each interaction, of the client that is installed."""
    return _drive(tmp_path_factory.mktemp("client"), server.url, "2.6.0")


def _drive(folder, url, version, *python_path):
    """Run the driver with a client, and return its masks."""
    np.save(folder / "image.npy", scan_array())
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join([*python_path, *sys.path])}
    command = [sys.executable, str(DRIVER), url, str(folder / "image.npy"), str(folder / "out.npz")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "out.npz") as file:
        found = dict(file)
    assert found.pop("client") == version
    return found


@pytest.fixture(scope="module")
def expected(checkpoint):
    """A function from prompts of a scan to its mask."""

    def mask(*change):
        scan = Scan(scan_array(), checkpoint, affine=guessed_affine(scan_array().shape, SPACING))
        for one in change:
            one(scan)
        return scan.mask(1)

    return mask


def test_the_client_receives_the_masks_of_a_scan_with_the_same_prompts(steps, expected):
    point = lambda scan: scan.click((5, 9, 10))  # noqa: E731
    outside = lambda scan: scan.click((5, 18, 20), inside=False)  # noqa: E731
    box = lambda scan: scan.box((7, 4, 6), (7, 11, 14))  # noqa: E731
    assert steps["point"].any()
    np.testing.assert_array_equal(steps["point"] > 0, expected(point))
    np.testing.assert_array_equal(steps["outside"] > 0, expected(point, outside))
    np.testing.assert_array_equal(steps["box"] > 0, expected(point, box))


def test_undo_brings_back_the_mask_before(steps):
    np.testing.assert_array_equal(steps["undo"], steps["point"])
    assert not steps["all undone"].any()
    np.testing.assert_array_equal(steps["point again"], steps["point"])


def test_a_stroke_is_a_scribble_and_a_lasso_a_drawn_mask(steps, expected):
    stroke, lasso = np.zeros(scan_array().shape, np.uint8), np.zeros(scan_array().shape, np.uint8)
    stroke[9, 9, 6:12] = 1
    lasso[11, 4:9, 5:12] = 1
    before = [lambda scan: scan.click((5, 9, 10)), lambda scan: scan.box((7, 4, 6), (7, 11, 14))]
    with_stroke = [*before, lambda scan: scan.scribble(stroke)]
    np.testing.assert_array_equal(steps["scribble"] > 0, expected(*with_stroke))
    np.testing.assert_array_equal(steps["lasso"] > 0, expected(*with_stroke, lambda scan: scan.draw(lasso, object=1)))


def test_a_seed_is_shown_as_it_is_and_can_be_corrected(steps):
    assert steps["seed"].sum() == 4 * 8 * 10
    assert (steps["corrected seed"] != steps["seed"]).any()


@pytest.mark.parametrize(
    "version", ["2.5.0", pytest.param("2.5.1", marks=pytest.mark.long)]
)  # the oldest, and the oldest that 3D Slicer's extension accepts
def test_older_clients_receive_the_same_masks(tmp_path, server, steps, version):
    old = tmp_path / "old"
    install = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(old), f"nninteractive-client=={version}"]
    result = subprocess.run([sys.executable, *install], capture_output=True, text=True)
    # Not skipped without the package index: the claim of compatibility would then be untested.
    assert result.returncode == 0, f"this test needs the package index\n{result.stderr}"
    found = _drive(tmp_path, server.url, version, str(old))
    assert found.keys() == steps.keys()
    for name, mask in steps.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)
