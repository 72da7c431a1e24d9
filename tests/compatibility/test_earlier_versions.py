"""Checkpoints, prepared folders and stopped runs of version 0.1 still load, predict and resume.

`make_data.py` wrote `data/version_0_1.tar.xz` with the code of commit 60e2596 (version 0.1).
"""

import csv
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, load_model
from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.data.held_out import held_out_cases
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.model.checkpoint import read_info
from sam2_3dmed_jax.training.loop import train
from tests.helpers.recorded_cases import RecordedCases

pytestmark = pytest.mark.slow

ARCHIVE = Path(__file__).parent / "data" / "version_0_1.tar.xz"
# Float32 sums differ in their last bits between processors and versions of XLA. Logits are of order 0.1 to 1.
LOGITS = {"rtol": 1e-4, "atol": 1e-5}
# The same, after four steps of AdamW, which divides small gradients by their own size.
LOSSES = {"rtol": 1e-3, "atol": 1e-5}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version_0_1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def earlier(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of the old commands: its experiment names the prepared folder by a relative path."""
    monkeypatch.chdir(unpacked)
    return unpacked


def log_rows(file: Path) -> list[dict[str, float]]:
    """The rows of a log without the durations."""
    with file.open(newline="") as lines:
        return [
            {name: float(value) for name, value in row.items() if value and name != "seconds"}
            for row in csv.DictReader(lines)
        ]


def test_a_sam2_3dmed_checkpoint_predicts_the_logits_that_version_0_1_predicted(earlier: Path):
    stored = np.load(earlier / "logits.npz")
    slices = np.random.default_rng(1).standard_normal((5, 64, 64, 3)).astype(np.float32)
    click = Prompt(object_id=1, slice=2, points=((20.0, 30.0),), labels=(1,))
    box = Prompt(object_id=2, slice=2, box=(8.0, 10.0, 40.0, 50.0))
    result = VolumePredictor(load_model(earlier / "nano_checkpoint")).predict(slices, [click, box])
    np.testing.assert_allclose(result.mask_logits, stored["nano_mask_logits"], **LOGITS)
    np.testing.assert_allclose(result.object_score_logits, stored["nano_object_score_logits"], **LOGITS)
    assert read_info(earlier / "nano_checkpoint").sam2.memory_selection == "recent"


def test_a_unet_checkpoint_predicts_the_logits_that_version_0_1_predicted(earlier: Path):
    patches = np.random.default_rng(2).random((1, 4, 16, 16)).astype(np.float32)
    logits = load_model(earlier / "unet_checkpoint")(jnp.asarray(patches))
    np.testing.assert_allclose(logits, np.load(earlier / "logits.npz")["unet_logits"], **LOGITS)


@pytest.mark.parametrize("name", ["nano_checkpoint", "unet_checkpoint"])
def test_a_checkpoint_keeps_its_preprocessing_and_provenance(earlier: Path, name: str):
    info = read_info(earlier / name)
    assert info.preprocessing.window == "60,200"
    assert info.provenance["made_by"] == "a test" and info.provenance["tool_version"] == "0.1.0"


def test_a_prepared_folder_holds_the_values_and_labels_that_were_prepared(earlier: Path):
    dataset = read_prepared("prepared")
    assert [case.id for case in dataset.cases] == ["c0", "c1", "c2", "c3"] and dataset.labels == {1: "ball"}
    for case in dataset.cases:
        assert case.shape == (12, 32, 32) and case.spacing == (2.5, 1.0, 1.0)
        values, labels = dataset.read(case, range(12))
        inside = labels == 1
        assert {*np.unique(values[inside])} == {100, 110, 120, 130, 140}
        assert {*np.unique(values[~inside])} == {0, 10, 20, 30, 40}
        assert case.areas[1] == tuple(inside.sum((1, 2)))


def test_the_split_of_a_run_is_the_one_that_its_checkpoint_is_scored_on(earlier: Path):
    dataset = read_prepared("prepared")
    record = json.loads((earlier / "run" / "split.json").read_text())
    split, run, trained, _ = held_out_cases(RecordedCases(dataset.ids, dataset.fingerprint), "run/final", {})
    assert [list(split.train), list(split.val), list(split.test)] == [record[name] for name in ("train", "val", "test")]
    assert (run["folds"], run["split_seed"], run["inner_fraction"], run["seed"]) == (2, 1, 0.5, 0)
    assert trained == "no"


def test_a_stopped_run_resumes_and_logs_what_version_0_1_would_have_logged(earlier: Path, tmp_path: Path):
    """The experiment file and the flag are those of version 0.1, too."""
    run = tmp_path / "run"
    shutil.copytree(earlier / "run", run)
    steps = []
    config = read_experiment("experiment.py", ["--data.box", "0.5"])
    train(config, run, lambda what, done, total, note: steps.append(done))
    assert steps == [3, 4]
    expected, rows = log_rows(earlier / "whole_log.csv"), log_rows(run / "log.csv")
    assert len(rows) == len(expected) == 4
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        # Version 0.1 also counted pairs of slices across the jump of a clip in L_srpp, which is part of the loss.
        for name in other.keys() - {"loss_srpp", "loss"}:
            if row["step"] <= 2 or name in ("step", "learning_rate"):
                np.testing.assert_allclose(row[name], other[name], **LOSSES, err_msg=f"step {row['step']:.0f}: {name}")
            elif name.startswith("loss_"):
                # The resumed steps have the same clips, with the noise of another generator. It moves a loss by a few
                # percent, and the gradient of so small a model by tens of percent.
                np.testing.assert_allclose(
                    row[name], other[name], rtol=0.1, atol=1e-3, err_msg=f"step {row['step']:.0f}: {name}"
                )
            else:
                assert np.isfinite(row[name]), name
    assert read_info(run / "final").preprocessing.window == "60,200"
