"""Training from cached features compared with training from slices, and resumed exactly."""

import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.data.render import render_clips
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.sam2.parameters import merge, split
from sam2_3dmed_jax.training.dataset import open_case_reader, split_cases
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.optimizer import Optimizer
from sam2_3dmed_jax.training.setup import set_up
from sam2_3dmed_jax.training.unroll import clip_features
from tests.helpers.feature_runs import build_features, experiment, quick_step, without_features
from tests.helpers.quick import ONLY_DECODER
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
    calls: list[tuple] = []
    train(config, run, lambda *call: calls.append(call), setup=replace(set_up(config), step=step))
    assert {call[0] for call in calls} == {"encoding slices", "training"}
    return run


def first_batches(config, features, count=3):
    reader = open_case_reader(read_prepared(config.data.path), config)
    cases, _, _ = split_cases(reader, config)
    data, training = config.data, config.training
    stream = iterate(clip_batches(reader, cases, data, training.batch_size, 0, features=features), 0, workers=2)
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def one_step(config, step, batch):
    """The metrics of a first step, and the moments of each trained parameter after it."""
    setup = set_up(config)
    state, metrics = step(setup.state, setup.frozen, jax.device_put(batch, setup.sharding))
    optimizer = Optimizer(config.training, state.weights)
    moments = next(part.mu for part in state.optimizer if hasattr(part, "mu"))
    return {name: float(x) for name, x in metrics.items()}, jax.device_get(optimizer._unpack(moments, state.weights))


def test_clips_are_the_same_with_and_without_features(config, whole):
    features = build_features(config, set_up(config))
    for cached, plain in zip(first_batches(config, features), first_batches(config, None), strict=True):
        assert set(plain) - set(cached) == {"grey", "window", "intensity", "noise_key"}
        assert set(cached) - set(plain) == {"embedding", "stride8", "stride4"}
        for name in set(plain) & set(cached):
            np.testing.assert_array_equal(cached[name], plain[name], err_msg=name)


@pytest.mark.long
def test_features_without_rounding_give_the_losses_and_gradients_of_slices(config, whole):
    (cached,) = first_batches(config, build_features(config, set_up(config)), 1)
    (plain,) = first_batches(config, None, 1)
    encoding = without_features(config)
    model = merge(abstract_model(config.model)[0], set_up(config).weights(set_up(config).state))
    rendered = jax.jit(lambda batch: render_clips(batch, NO_AUGMENTATION))(plain)
    exact = jax.device_get(jax.jit(lambda slices: clip_features(model, slices))(rendered["slices"]))
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
    """The features, half of them moved to a neighbouring bfloat16 number: 2.4 times the SD of rounding."""
    rng = np.random.default_rng(seed)

    def nudge(x):
        bits = x.view(np.uint16)
        moved = (bits + rng.choice(np.array([1, 65535, 0, 0], np.uint16), bits.shape)).astype(np.uint16)
        return np.where(bits & 0x7FFF, moved, bits).view(x.dtype)

    return {name: nudge(x) if name in SliceFeatures._fields else x for name, x in batch.items()}


def distance(one, two):
    return np.sqrt(sum(np.square(one[path] - two[path]).sum() for path in two))


@pytest.mark.long  # compiles the step with an encoder too
def test_features_change_losses_and_gradients_no_more_than_rounding_does(config, whole, step):
    (cached,) = first_batches(config, build_features(config, set_up(config)), 1)
    (plain,) = first_batches(config, None, 1)
    encoding = without_features(config)
    from_features, moments = one_step(config, step, cached)
    from_slices, expected = one_step(encoding, quick_step(encoding), plain)
    others = [one_step(config, step, nudged(cached, seed)) for seed in range(8)]
    names = ("loss", "loss_seg", "loss_srpp", "loss_bd", "loss_bce", "loss_dice", "loss_iou", "loss_object_score")
    for name in (*names, "gradient_norm"):
        bound = max(abs(metrics[name] - from_features[name]) for metrics, _ in others)
        assert abs(from_features[name] - from_slices[name]) <= bound, name
        assert bound < (0.3 if name == "gradient_norm" else 0.1) * abs(from_slices[name]), (
            name
        )  # otherwise the bound is too weak
    assert set(moments) == set(expected)
    bound = max(distance(other, moments) for _, other in others)
    size = np.sqrt(sum(np.square(value).sum() for value in expected.values()))
    assert distance(moments, expected) <= bound < 0.5 * size
    scale = max(np.abs(value).max() for value in expected.values())
    reached = {path for path, value in expected.items() if np.abs(value).max() > 1e-5 * scale}
    assert {"memory_attention", "memory_encoder", "sam_mask_decoder", "slice_position", "boundary"} <= {
        path.split(".")[0] for path in reached
    }
    assert reached <= {path for path, value in moments.items() if np.abs(value).max() > 0}


def test_a_run_from_features_writes_a_complete_model_with_its_encoder(config, whole):
    trained, first = split(load_model(whole / "final"))[1], set_up(config)
    assert set(trained) == set(first.weights(first.state))
    assert first.encoder is not None
    for path, value in first.encoder.weights.items():
        np.testing.assert_array_equal(trained[path], value, err_msg=path)
    assert np.abs(trained["no_mem_embed"] - first.state.weights["no_mem_embed"]).max() > 0


def test_a_stopped_run_from_features_resumes_to_the_same_weights_and_log(config, whole, step, tmp_path):
    run = tmp_path / "run"

    class StopError(Exception):
        pass

    def stop(what, done, total, note=""):
        if what == "training" and done == 3:
            raise StopError

    with pytest.raises(StopError):
        train(config, run, stop, setup=replace(set_up(config), step=step))
    train(config, run, setup=replace(set_up(config), step=step))
    assert rows(run) == rows(whole)
    resumed, straight = (split(load_model(folder / "final"))[1] for folder in (run, whole))
    for path, value in straight.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


@pytest.mark.long
def test_a_run_from_features_killed_twice_equals_an_uninterrupted_one(config, tmp_path):
    config = config.replace(
        model=replace(config.model, srpp=False, bd=False),
        data=replace(config.data, features=str(tmp_path / "features")),
        training=replace(config.training, steps=12, frozen=ONLY_DECODER),
    )
    experiment = tmp_path / "experiment.py"
    experiment.write_text(f"from sam2_3dmed_jax.config import *\n\ndef get_config():\n    return {config!r}\n")
    rng = np.random.default_rng(7)
    for last in (5, 10):
        code, stderr = signalled(experiment, tmp_path / "killed", int(rng.integers(last - 3, last)), signal.SIGKILL)
        assert code == -signal.SIGKILL, stderr
        assert not (tmp_path / "killed" / "final").exists()
    resumed, straight = (train(config, tmp_path / name) for name in ("killed", "straight"))
    assert len(rows(tmp_path / "killed")) == 12
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")
    expected = split(load_model(straight))[1]
    for path, value in split(load_model(resumed))[1].items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_features_of_another_encoder_are_refused_before_the_folder_is_created(config, whole, tmp_path):
    with pytest.raises(UserError, match=r"^data\.features: .* holds features of other settings \(encoder is"):
        train(config.replace(training=replace(config.training, seed=1)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
