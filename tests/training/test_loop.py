"""A run's folder: what it holds, how it resumes, and what it refuses."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, SrppConfig, TrainingConfig
from sam2_3dmed_jax.data.split_files import keep_split, read_splits
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.parameters import split
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.volume.phantom import make_case
from tests.data.prepared_files import write_prepared


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    data = tmp_path_factory.mktemp("data") / "phantom"
    write_prepared(data, {f"p{seed}": make_case(seed, "spleen", 48)[:2] for seed in (0, 1)}, {1: "spleen"})
    return ExperimentConfig(
        model=ModelConfig("nano", 64, slice_position=SrppConfig(dim=16, layers=1)),
        data=DataConfig(path=str(data), slices=2, folds=2),
        training=TrainingConfig(steps=4, batch_size=2, checkpoint_every=2, log_every=1, warmup_steps=1),
    )


@pytest.fixture(scope="module")
def whole(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config, run)
    return run


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_a_run_leaves_log_config_checkpoints_events_and_a_native_checkpoint(config, whole):
    names = {path.name for path in whole.iterdir()}
    assert {"log.csv", "config.json", "split.json", "checkpoints", "final"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [row["step"] for row in rows(whole)] == ["1", "2", "3", "4"]
    assert all(float(row[name]) > 0 for row in rows(whole) for name in ("loss", "loss_seg", "loss_srpp", "loss_bd"))
    model = load_model(whole / "final")
    assert model.info.model.slice_position.window == config.data.slices  # the context sees what it was trained on
    assert json.loads((whole / "final" / "config.json").read_text())["provenance"]["steps"] == 4


def test_a_run_that_stopped_at_a_checkpoint_resumes_to_the_same_weights_and_log(config, whole, tmp_path):
    run = tmp_path / "run"

    class StopError(Exception):
        pass

    def stop(done: int, total: int, metrics: dict[str, float]) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        train(config, run, stop)
    assert not (run / "final").exists()
    train(config, run)
    assert rows(run) == rows(whole)
    resumed, straight = (split(load_model(folder / "final"))[1] for folder in (run, whole))
    for path, value in straight.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


def test_a_run_says_which_cases_it_trains_on_and_does_not_resume_with_others(config, whole, tmp_path):
    (split,) = read_splits(whole / "split.json")
    assert (len(split.train), split.val, len(split.test)) == (1, (), 1)
    assert json.loads((whole / "split.json").read_text())["how"]["data"] == config.data.path
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.json", run)
    keep_split(run / "split.json", Split(split.test, (), split.train), {})
    with pytest.raises(UserError, match="holds another split"):
        train(config, run)
    assert not (run / "checkpoints").exists()


def test_another_experiment_in_the_same_folder_is_refused_with_the_fields_that_differ(config, whole):
    other = config.replace(training=replace(config.training, learning_rate=0.5, seed=3))
    with pytest.raises(UserError, match=r"training\.learning_rate, training\.seed"):
        train(other, whole)


def test_a_folder_with_other_files_is_refused_and_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(config, tmp_path):
    wild = config.replace(training=replace(config.training, learning_rate=1e30, gradient_clip=1e30, warmup_steps=0))
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d; lower training.learning_rate"):
        train(wild, tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()


def test_a_checkpoint_of_another_preset_is_refused_as_a_start(config, whole, tmp_path):
    other = config.replace(model=replace(config.model, preset="sam2.1_hiera_tiny", init=str(whole / "final")))
    with pytest.raises(UserError, match=r"model\.init: .* is of preset nano"):
        train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": (4,)}, r"data\.classes: .* has no label 4; choose from \[1\]"),
        ({"fold": 2}, r"data\.fold: 2 does not exist"),
        ({"path": "/nowhere"}, r"/nowhere: there is no such dataset"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_the_runs_folder_is_made(config, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        train(config.replace(data=replace(config.data, **changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_the_classes_is_refused(config, tmp_path):
    hu, labels, _ = make_case(0, "spleen", 48)
    write_prepared(tmp_path / "data", dict.fromkeys("ab", (hu, labels * 0)), {1: "spleen"})
    other = config.replace(data=replace(config.data, path=str(tmp_path / "data")))
    with pytest.raises(UserError, match=r"no training case holds a class to segment; check data\.classes"):
        train(other, tmp_path / "run")


def test_a_damaged_shard_stops_the_run_with_one_sentence(config, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(config.data.path, data)
    for shard in data.glob("shards/*"):
        content = bytearray(shard.read_bytes())
        for at in range(1000, 150000, 300):
            content[at] ^= 0x40
        shard.write_bytes(content)
    with pytest.raises(UserError, match=r"arrayrecord is damaged .* delete it and run `sam2-3dmed prepare` again"):
        train(config.replace(data=replace(config.data, path=str(data))), tmp_path / "run")
