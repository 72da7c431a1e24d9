"""Encoding of slices on all devices of a process: the features are equal to those of one device."""

import os
import subprocess
import sys

import numpy as np

from tests.helpers import encode_on_devices


def test_eight_devices_give_the_features_of_one_device_when_blocks_do_not_divide(tmp_path):
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    words = [sys.executable, "-m", encode_on_devices.__name__, str(tmp_path)]
    subprocess.run(words, env={**os.environ, **flags}, check=True, timeout=600)
    one, eight = (dict(np.load(tmp_path / f"{count}.npz")) for count in (1, 8))
    assert eight.pop("block") == 8 * one.pop("block")
    assert set(one) == {"arr_0", "arr_1", "arr_2"}
    for name, value in one.items():
        assert len(value) == encode_on_devices.SLICES and np.abs(value[-1]).max() > 0
        # Sums in another order may round to the next bfloat16 number.
        np.testing.assert_allclose(eight[name], value, rtol=2**-7, atol=1e-4 * np.abs(value).max())
