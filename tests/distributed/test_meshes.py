"""Meshes: the same run on one device and on eight devices gives the same losses and weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import train_on_meshes

pytestmark = pytest.mark.slow


def train(mesh: str, out: Path, kind: str = "everything") -> dict[str, np.ndarray]:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    words = [sys.executable, "-m", train_on_meshes.__name__, str(out), mesh, kind]
    subprocess.run(words, env={**os.environ, **flags}, check=True, timeout=900)
    return dict(np.load(out / f"{mesh}.npz"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return train("1x1", tmp_path_factory.mktemp("one"))


def test_some_weights_train_on_a_mesh_to_the_losses_and_weights_of_one_device(tmp_path):
    """On 4 x 2, batches are split over both axes and large weights over one."""
    one, many = (train(mesh, tmp_path, "few") for mesh in ("1x1", "4x2"))
    np.testing.assert_allclose(many["losses"], one["losses"], atol=1e-5)
    assert one["losses"][-1] < one["losses"][0]
    for path in sorted(one):
        np.testing.assert_allclose(many[path], one[path], atol=1e-4, err_msg=path)


@pytest.mark.long  # compiles the whole step for each mesh
@pytest.mark.parametrize("mesh", ["4x2", "8x1", "1x8"])
def test_twenty_steps_on_a_mesh_give_the_losses_and_weights_of_one_device(one, mesh, tmp_path):
    many = train(mesh, tmp_path)
    np.testing.assert_allclose(many["losses"], one["losses"], atol=1e-5)
    assert one["losses"][-1] < one["losses"][0]
    for path in sorted(one):
        np.testing.assert_allclose(many[path], one[path], atol=1e-4, err_msg=path)


@pytest.mark.long  # compiles two train steps
def test_adapters_train_on_a_mesh_to_the_losses_and_weights_of_one_device(tmp_path):
    one, many = (train(mesh, tmp_path, "adapters") for mesh in ("1x1", "2x2"))
    np.testing.assert_allclose(many["losses"], one["losses"], atol=1e-5)
    assert one.keys() == many.keys() and all(path.endswith(("losses", "lora_a", "lora_b")) for path in one)
    for path in sorted(one):
        np.testing.assert_allclose(many[path], one[path], atol=1e-5, err_msg=path)  # a step changes them by 1e-4
