"""Transfer of batches to the devices."""

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.config import MeshConfig
from sam2_3dmed_jax.training.feed import StepsInFlight, to_devices
from sam2_3dmed_jax.training.sharding import batch_sharding, make_mesh


def test_the_next_batch_is_transferred_after_a_step_starts_and_before_it_ends(monkeypatch):
    sharding = batch_sharding(make_mesh(MeshConfig()), jax.device_count())
    calls = []
    put = jax.make_array_from_process_local_data

    def record_transfer(sharding, part):
        calls.append(f"transfer {part[0]}")
        return put(sharding, part)

    monkeypatch.setattr(jax, "make_array_from_process_local_data", record_transfer)
    monkeypatch.setattr(jax, "block_until_ready", lambda outputs: calls.append(f"wait {outputs}"))
    in_flight = StepsInFlight()
    for i, _ in enumerate(to_devices(({"n": np.full(jax.device_count(), i)} for i in range(3)), sharding)):
        calls.append(f"start {i}")
        in_flight.add(i)
    assert calls == [
        *("transfer 0", "start 0", "wait None"),
        *("transfer 1", "start 1", "wait 0"),  # step 0 may run until here
        *("transfer 2", "start 2", "wait 1"),  # its batch and step 1's are the only ones on the devices before this
    ]


def test_batches_arrive_complete_and_in_order():
    sharding = batch_sharding(make_mesh(MeshConfig()), jax.device_count())

    def source():
        for i in range(4):
            yield {"x": np.full((jax.device_count(), 3), i, np.float32), "n": np.arange(jax.device_count())}

    for i, batch in enumerate(to_devices(source(), sharding)):
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
