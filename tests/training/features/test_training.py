"""Training from cached features: the same clips, losses and gradients as without, and a run that resumes to the bit."""

import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.sam2.parameters import merge, split
from sam2_3dmed_jax.training.dataset import open_view, split_cases
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.optimizer import Optimizer
from sam2_3dmed_jax.training.setup import set_up
from sam2_3dmed_jax.training.unroll import clip_features
from tests.helpers.feature_runs import experiment, made, quick_step, without_features
from tests.helpers.run_files import rows, signalled


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return experiment(tmp_path_factory.mktemp("cached"))


@pytest.fixture(scope="module")
def step(config):
    return quick_step(config)


@pytest.fixture(scope="module")
def whole(config, step, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    told: list[tuple] = []
    train(config, run, data_progress=lambda *words: told.append(words), setup=replace(set_up(config), step=step))
    assert {words[0] for words in told} == {"encoding slices"}
    return run


def first_batches(config, features, count=3):
    view = open_view(read_prepared(config.data.path), config)
    cases, _, _ = split_cases(view, config)
    data, training = config.data, config.training
    stream = iterate(clip_batches(view, cases, data, training.batch_size, 0, features=features), 0, workers=2)
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def one_step(config, step, batch):
    """The logged metrics of a first step, and the moments of each trained parameter after it."""
    setup = set_up(config)
    state, metrics = step(setup.state, setup.frozen, jax.device_put(batch, setup.sharding))
    optimizer = Optimizer(config.training, state.weights)
    moments = next(part.mu for part in state.optimizer if hasattr(part, "mu"))
    return {name: float(x) for name, x in metrics.items()}, jax.device_get(optimizer._unpack(moments, state.weights))


def test_clips_are_drawn_alike_with_features_and_without(config, whole):
    features = made(config, set_up(config))
    for cached, plain in zip(first_batches(config, features), first_batches(config, None), strict=True):
        assert set(plain) - set(cached) == {"slices"}
        assert set(cached) - set(plain) == {"embedding", "stride8", "stride4"}
        for name in set(plain) & set(cached):
            np.testing.assert_array_equal(cached[name], plain[name], err_msg=name)


@pytest.mark.long
def test_features_that_are_not_rounded_give_the_losses_and_gradients_of_slices(config, whole):
    (cached,) = first_batches(config, made(config, set_up(config)), 1)
    (plain,) = first_batches(config, None, 1)
    encoding = without_features(config)
    model = merge(abstract_model(config.model)[0], set_up(config).weights(set_up(config).state))
    exact = jax.device_get(jax.jit(lambda slices: clip_features(model, slices))(plain["slices"]))
    features = {name: np.moveaxis(x, 0, 1) for name, x in exact._asdict().items()}
    for name, x in features.items():
        valid = plain["slice_valid"]
        np.testing.assert_allclose(cached[name][valid].astype(np.float32), x[valid], rtol=2**-8, atol=1e-4)
    from_features, moments = one_step(config, quick_step(config, np.float32), {**cached, **features})
    from_slices, expected = one_step(encoding, quick_step(encoding), plain)
    assert from_features == pytest.approx({name: from_slices[name] for name in from_features}, rel=1e-4, abs=1e-6)
    size = np.sqrt(sum(np.square(value).sum() for value in expected.values()))
    assert distance(moments, expected) < 1e-4 * size


def nudged(batch, seed):
    """The features, half of their numbers moved to bfloat16's next, up or down: 2.4 times rounding's SD."""
    rng = np.random.default_rng(seed)

    def nudge(x):
        bits = x.view(np.uint16)
        moved = (bits + rng.choice(np.array([1, 65535, 0, 0], np.uint16), bits.shape)).astype(np.uint16)
        return np.where(bits & 0x7FFF, moved, bits).view(x.dtype)

    return {name: nudge(x) if name in SliceFeatures._fields else x for name, x in batch.items()}


def distance(one, two):
    return np.sqrt(sum(np.square(one[path] - two[path]).sum() for path in two))


def test_losses_and_gradients_from_features_are_those_without_to_bfloat16s_error(config, whole, step):
    (cached,) = first_batches(config, made(config, set_up(config)), 1)
    (plain,) = first_batches(config, None, 1)
    encoding = without_features(config)
    from_features, moments = one_step(config, step, cached)
    from_slices, expected = one_step(encoding, quick_step(encoding), plain)
    others = [one_step(config, step, nudged(cached, seed)) for seed in range(8)]
    names = ("loss", "loss_seg", "loss_srpp", "loss_bd", "loss_bce", "loss_dice", "loss_iou", "loss_object_score")
    for name in (*names, "gradient_norm"):
        most = max(abs(metrics[name] - from_features[name]) for metrics, _ in others)
        assert abs(from_features[name] - from_slices[name]) <= most, name
        assert most < (0.3 if name == "gradient_norm" else 0.1) * abs(from_slices[name]), name  # else it says little
    assert set(moments) == set(expected)
    most = max(distance(other, moments) for _, other in others)
    size = np.sqrt(sum(np.square(value).sum() for value in expected.values()))
    assert distance(moments, expected) <= most < 0.5 * size
    scale = max(np.abs(value).max() for value in expected.values())
    reached = {path for path, value in expected.items() if np.abs(value).max() > 1e-5 * scale}
    assert {"memory_attention", "memory_encoder", "sam_mask_decoder", "slice_position", "boundary"} <= {
        path.split(".")[0] for path in reached
    }
    assert reached <= {path for path, value in moments.items() if np.abs(value).max() > 0}


def test_a_run_from_features_leaves_a_whole_model_with_the_encoder_it_began_with(config, whole):
    trained, first = split(load_model(whole / "final"))[1], set_up(config)
    assert set(trained) == set(first.weights(first.state))
    assert first.encoder is not None
    for path, value in first.encoder.weights.items():
        np.testing.assert_array_equal(trained[path], value, err_msg=path)
    assert np.abs(trained["no_mem_embed"] - first.state.weights["no_mem_embed"]).max() > 0


def test_a_run_from_features_that_stopped_resumes_to_the_same_weights_and_log(config, whole, step, tmp_path):
    run = tmp_path / "run"

    class StopError(Exception):
        pass

    def stop(done, total, metrics):
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        train(config, run, stop, setup=replace(set_up(config), step=step))
    train(config, run, setup=replace(set_up(config), step=step))
    assert rows(run) == rows(whole)
    resumed, straight = (split(load_model(folder / "final"))[1] for folder in (run, whole))
    for path, value in straight.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


@pytest.mark.long
def test_a_run_from_features_that_is_killed_twice_ends_as_one_that_never_was(config, tmp_path):
    # The mask decoder alone trains: a third of the time to compile.
    config = config.replace(
        model=replace(config.model, srpp=False, bd=False),
        data=replace(config.data, features=str(tmp_path / "features")),
        training=replace(config.training, steps=12, frozen=(r"^(?!sam_mask_decoder\.(?!conv_s))",)),
    )
    experiment = tmp_path / "experiment.py"
    experiment.write_text(f"from sam2_3dmed_jax.config import *\n\ndef get_config():\n    return {config!r}\n")
    rng = np.random.default_rng(7)
    for last in (5, 10):
        code, told = signalled(experiment, tmp_path / "killed", int(rng.integers(last - 3, last)), signal.SIGKILL)
        assert code == -signal.SIGKILL, told
        assert not (tmp_path / "killed" / "final").exists()
    resumed, straight = (train(config, tmp_path / name) for name in ("killed", "straight"))
    assert len(rows(tmp_path / "killed")) == 12
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")
    expected = split(load_model(straight))[1]
    for path, value in split(load_model(resumed))[1].items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_features_of_another_encoder_are_refused_before_the_runs_folder_is_made(config, whole, tmp_path):
    with pytest.raises(UserError, match=r"^data\.features: .* holds features of other settings \(encoder is"):
        train(config.replace(training=replace(config.training, seed=1)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
