"""Transfer of batches to the devices."""

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.config import MeshConfig
from sam2_3dmed_jax.training.feed import to_devices
from sam2_3dmed_jax.training.sharding import batch_sharding, make_mesh


def test_batches_arrive_complete_and_in_order_one_ahead_of_the_step():
    sharding = batch_sharding(make_mesh(MeshConfig()), jax.device_count())
    taken = []

    def source():
        for i in range(4):
            taken.append(i)
            yield {"x": np.full((jax.device_count(), 3), i, np.float32), "n": np.arange(jax.device_count())}

    for i, batch in enumerate(to_devices(source(), sharding)):
        assert len(taken) == min(i + 2, 4)
        assert batch["x"].sharding == sharding and batch["n"].tolist() == list(range(jax.device_count()))
        np.testing.assert_array_equal(batch["x"], np.full((jax.device_count(), 3), i))
    assert i == 3


def test_no_batches_give_no_steps_and_errors_are_raised():
    sharding = batch_sharding(make_mesh(MeshConfig()), jax.device_count())
    assert list(to_devices([], sharding)) == []

    def broken():
        yield {"x": np.zeros((jax.device_count(), 1))}
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(to_devices(broken(), sharding))
