"""The same run on one device and on meshes of eight gives the same losses and weights."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.distributed import train_on_meshes

MESHES = ("8x1", "4x2", "1x8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("meshes")
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    words = [sys.executable, "-m", train_on_meshes.__name__, str(out), "1x1", *MESHES]
    subprocess.run(words, env={**os.environ, **flags}, check=True, timeout=900)
    return {name: dict(np.load(out / f"{name}.npz")) for name in ("1x1", *MESHES)}


@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_give_one_devices_losses_and_weights(runs, mesh):
    one, many = runs["1x1"], runs[mesh]
    np.testing.assert_allclose(many["losses"], one["losses"], atol=1e-5)
    assert one["losses"][-1] < one["losses"][0]
    for path in sorted(one):
        np.testing.assert_allclose(many[path], one[path], atol=1e-4, err_msg=path)
