"""The loss guard stops a run and saves the batch of the step."""

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training.checkpoint import restore
from sam2_3dmed_jax.training.guard import LossGuard
from sam2_3dmed_jax.training.loop import train
from tests.helpers.run_files import assert_same_result


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_its_batch(small, whole, tmp_path):
    run = tmp_path / "run"
    batches = []

    def overflowing(state, frozen, batch):
        batches.append(jax.device_get(batch))
        if int(state.step) == 6:
            large = {path: value * 1e30 for path, value in state.weights.items()}
            state = state._replace(weights=large)
        return small.compiled.step(state, frozen, batch)

    setup = small.setup(overflowing, log_every=4)
    with pytest.raises(UserError, match=r"the (loss|gradient) is (nan|inf) at step 7; lower .*failed/step_7\.npz"):
        train(setup.config, run, setup=setup)
    assert not (run / "final").exists()
    file = run / "failed" / "step_7.npz"
    with np.load(file) as stored:
        assert set(stored) == set(batches[6])
        for name, value in batches[6].items():
            np.testing.assert_array_equal(stored[name], value)

    assert restore(run / "checkpoints", small.setup().state).step == 6  # the step before the failure

    small.train(run)  # the kept checkpoint is undamaged
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"9", "12"}
    (run / "log.csv").write_bytes((whole / "log.csv").read_bytes())  # the first part logged fewer rows
    assert_same_result(run, whole)


def check_losses(run, losses, limit, norm=1.0):
    batches = [{"slices": np.full(3, step)} for step in range(len(losses))]
    guard = LossGuard(run, batches, limit)
    for step, loss in enumerate(losses, 1):
        guard.add(step, {"loss": np.float32(loss), "gradient_norm": np.float32(norm)})
    guard.check()


def test_a_loss_far_above_the_median_stops_the_run_and_saves_its_batch(tmp_path):
    losses = [1.0] * 30 + [99.0, 101.0, 1.0]
    with pytest.raises(UserError, match=r"loss is 101, more than 100 times .* median 1, at step 32; .*loss_limit"):
        check_losses(tmp_path, losses, 100.0)
    assert np.load(tmp_path / "failed" / "step_32.npz")["slices"].tolist() == [31] * 3
    assert [path.name for path in (tmp_path / "failed").iterdir()] == ["step_32.npz"]
    check_losses(tmp_path, losses, 0.0)
    check_losses(tmp_path, [1.0] * 19 + [1e9], 100.0)  # too few steps for a median


def test_a_gradient_that_is_not_finite_stops_a_run_with_a_finite_loss(tmp_path):
    with pytest.raises(UserError, match="the gradient is inf at step 1"):
        check_losses(tmp_path, [1.0], 100.0, norm=np.inf)
