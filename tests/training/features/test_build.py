"""Filling of the feature cache: exact features, resumed by case, and refused without space on disk."""

import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.runtime.folder_lock import one_writer
from sam2_3dmed_jax.sam2.parameters import merge
from sam2_3dmed_jax.training.dataset import check_data, open_case_reader
from sam2_3dmed_jax.training.features.build import check_features
from sam2_3dmed_jax.training.setup import set_up
from sam2_3dmed_jax.training.unroll import clip_features
from tests.helpers.feature_runs import DEPTH, build_features, experiment


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return experiment(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def setup(config):
    return set_up(config)


@pytest.fixture(scope="module")
def cache(config, setup):
    return build_features(config, setup)


@pytest.fixture
def copied(config, cache, tmp_path):
    """The experiment with its own copy of the cache, which a test may damage."""
    folder = tmp_path / "features"
    shutil.copytree(cache.path, folder)
    return config.replace(data=replace(config.data, features=str(folder)))


def files(folder) -> dict[str, tuple[int, int]]:
    """Each file with its size and inode; a file that is written again has another inode."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.name: (path.stat().st_size, path.stat().st_ino) for path in paths}


def check(config, encoder):
    """`check_features` of a run with this prepared dataset."""
    check_features(config, encoder, check_data(config))


def training_cases(config):
    """Two of the three cases, by `folds=3, fold=0`."""
    names = sorted(path.stem for path in Path(config.data.features, "cases").iterdir())
    return [case for case in read_prepared(config.data.path).cases if case.id in names]


def test_features_of_training_cases_equal_the_encoders_up_to_rounding(config, setup, cache):
    cases = training_cases(config)
    assert len(cases) == 2 and not list(Path(cache.path).rglob(".*"))
    graphdef, _ = abstract_model(config.model)
    model = merge(graphdef, {**setup.weights(setup.state)})
    encode = jax.jit(lambda slices: clip_features(model, slices))
    reader = open_case_reader(read_prepared(config.data.path), config)
    for case in cases:
        last = case.shape[0] - 1  # in a block that is not full
        alone = encode(jnp.asarray(reader.values(case, [0, last]))[None])
        for values, field in zip(cache.read(case, [0, last], 2), alone, strict=True):
            scale = float(jnp.abs(field).max())
            # Rounding to the 8 bits of bfloat16, and float32 sums in another order.
            np.testing.assert_allclose(values.astype(np.float32), field[:, 0], rtol=2**-8, atol=1e-5 * scale)


def test_progress_reports_slices_and_space_and_an_interrupted_run_resumes(copied, setup):
    whole = {name: size for name, (size, _) in files(copied.data.features).items()}
    shutil.rmtree(copied.data.features)
    calls = []

    class StopError(Exception):
        pass

    def stop(what, done, total, note):
        calls.append((what, done, total, note))
        if done > DEPTH:
            raise StopError

    with pytest.raises(StopError):
        build_features(copied, setup, stop)
    room = 2 * DEPTH * 2 * 4 * 4 * 64 * 4 / 1e6  # embedding, stride8, and twice as large stride4, bfloat16
    assert calls[0] == ("encoding slices", 0, 2 * DEPTH, f"{room:.1f} MB in {copied.data.features}")
    first = files(copied.data.features)
    assert len(first) == 3 and not any(name.endswith(".tmp") for name in first)
    calls.clear()
    build_features(copied, setup, lambda *call: calls.append(call))
    assert calls[0][1:3] == (0, DEPTH) and calls[-1][1:3] == (DEPTH, DEPTH)
    after = files(copied.data.features)
    assert {name: after[name] for name in first} == first  # finished cases are not encoded again
    assert {name: size for name, (size, _) in after.items()} == whole
    calls.clear()
    build_features(copied, setup, lambda *call: calls.append(call))
    assert not calls and files(copied.data.features) == after


def test_a_truncated_shard_is_encoded_again_and_the_others_are_kept(copied, setup, cache, caplog):
    before = files(copied.data.features)
    case = training_cases(copied)[1]
    shard = Path(copied.data.features, "shards", f"{case.id}.arrayrecord")
    os.truncate(shard, 1000)
    repaired = build_features(copied, setup)
    (warning,) = caplog.messages
    assert warning.startswith(f"{shard} has 1000 bytes of ") and warning.endswith("; its slices are encoded again")
    after = files(copied.data.features)
    assert {name for name in after if after[name] != before[name]} == {shard.name}
    for values, field in zip(repaired.read(case, [1], 1), cache.read(case, [1], 1), strict=True):
        np.testing.assert_array_equal(values.view(np.uint16), field.view(np.uint16))


def test_a_disk_without_space_is_refused_before_anything_is_written(config, setup, tmp_path, monkeypatch):
    elsewhere = config.replace(data=replace(config.data, features=str(tmp_path / "a" / "features")))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 100_000) if Path(path).exists() else None)
    for fill in (lambda: check(elsewhere, setup.encoder), lambda: build_features(elsewhere, setup)):
        with pytest.raises(UserError, match=r"20 slices take 0\.2 MB, and the disk of .*features has 0\.1 MB free"):
            fill()
    assert not list(tmp_path.iterdir())


def test_features_of_other_weights_or_another_window_are_refused(copied, setup):
    other = copied.replace(training=replace(copied.training, seed=5))
    with pytest.raises(UserError, match=r"other settings \(encoder is [0-9a-f]{12} there and [0-9a-f]{12} here\)"):
        check(other, set_up(other).encoder)
    lung = copied.replace(data=replace(copied.data, preprocessing=replace(copied.data.preprocessing, window="lung")))
    with pytest.raises(UserError, match=r'other settings \(window is "soft_tissue" there and "lung" here\)'):
        check(lung, setup.encoder)


def test_a_folder_that_cannot_be_written_is_refused(copied, setup):
    folder = Path(copied.data.features)
    shutil.rmtree(folder)
    folder.parent.joinpath("file").write_text("")
    inside = copied.replace(data=replace(copied.data, features=str(folder.parent / "file" / "features")))
    with pytest.raises(UserError, match=r"file/features cannot be written \(Not a directory\)"):
        build_features(inside, setup)


def test_one_run_fills_a_folder_and_others_may_read_it(copied, setup, cache):
    with one_writer(copied.data.features, ""):
        build_features(copied, setup)
        next(Path(copied.data.features, "cases").iterdir()).unlink()
        with pytest.raises(UserError, match="in use by this process"):
            build_features(copied, setup)


def test_a_changed_case_is_encoded_again(copied, setup):
    case = training_cases(copied)[0]
    sidecar = Path(copied.data.features, "cases", f"{case.id}.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "case": "another"}))
    before = files(copied.data.features)
    build_features(copied, setup)
    after = files(copied.data.features)
    assert {name for name in after if after[name] != before[name]} == {sidecar.name, f"{case.id}.arrayrecord"}
