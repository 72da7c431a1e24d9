"""The memory selection of a model: stored in checkpoints, overridden at loading, and recorded."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam2_3dmed_jax import Scan, VolumePredictor, load_model, save_model
from sam2_3dmed_jax.commands.command_line import add_memory_selection
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import ModelConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.export.onnx import write_onnx
from sam2_3dmed_jax.inference.segmentation_record import model_record
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, parse_info, read_info, save_weights
from sam2_3dmed_jax.sam2.model import SAM2
from tests.helpers.scans import scan_file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a model that was trained with `confident`."""
    config = ModelConfig("nano", 64, srpp=False, bd=False, memory_selection="confident")
    folder = tmp_path_factory.mktemp("memory") / "checkpoint"
    save_weights(random_weights(config, 0), folder, CheckpointInfo(config))
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> SAM2:
    """Return the model of the checkpoint."""
    loaded: SAM2 = load_model(checkpoint)
    return loaded


def test_a_checkpoint_keeps_its_memory_selection_and_loading_may_replace_it(
    checkpoint: Path, model: SAM2, tmp_path: Path
):
    assert model.config.memory_selection == "confident"
    replaced = load_model(checkpoint, memory_selection="self-sorting")
    assert replaced.config.memory_selection == "self-sorting"
    save_model(replaced, tmp_path / "replaced")
    assert read_info(tmp_path / "replaced").sam2.memory_selection == "self-sorting"


def test_a_checkpoint_of_an_earlier_version_has_the_rule_of_sam2(checkpoint: Path):
    record = json.loads((checkpoint / "config.json").read_text())
    assert record["model"].pop("memory_selection") == "confident"
    assert parse_info(json.dumps(record), "config.json").sam2.memory_selection == "recent"


def test_a_predictor_replaces_the_memory_selection_and_the_record_has_it(model: SAM2):
    assert VolumePredictor(model).model is model
    predictor = VolumePredictor(model, memory_selection="recent")
    assert predictor.model.config.memory_selection == "recent"
    assert model_record(predictor, None)["memory_selection"] == "recent"
    with pytest.raises(UserError, match="'best' does not exist; choose one of recent, confident, self-sorting"):
        VolumePredictor(model, memory_selection="best")  # type: ignore[arg-type]


def test_a_scan_loads_its_model_with_the_memory_selection_that_is_asked_for(checkpoint: Path, tmp_path: Path):
    scan = Scan(scan_file(tmp_path / "scan.nii.gz"), checkpoint, memory_selection="self-sorting")
    assert scan._model.load().model.config.memory_selection == "self-sorting"
    with pytest.raises(UserError, match="'best' does not exist"):
        Scan(tmp_path / "scan.nii.gz", checkpoint, memory_selection="best")  # type: ignore[arg-type]


def test_a_u_net_has_no_memories_to_select(tmp_path: Path):
    config = UNetConfig(patch=(8, 8, 8), features=2, blocks=(1, 1), classes=(1,))
    save_weights(random_weights(config, 0), tmp_path / "unet", CheckpointInfo(config))
    with pytest.raises(UserError, match="a U-Net has no memories to select; leave memory_selection out"):
        load_model(tmp_path / "unet", memory_selection="recent")


def test_the_flag_has_the_name_of_the_field_too():
    parser = argparse.ArgumentParser()
    add_memory_selection(parser)
    assert parser.parse_args([]).memory_selection is None
    for flag in ("--memory-selection", "--model.memory_selection"):
        assert parser.parse_args([flag, "confident"]).memory_selection == "confident"


def test_memory_selection_is_for_a_checkpoint_and_not_for_files(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    files = ["--predictions", str(tmp_path), "--references", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *files, "--memory-selection", "recent"]) == 2
    assert "--memory-selection is for a checkpoint; leave it out" in capsys.readouterr().err


def test_onnx_refuses_a_model_that_ranks_its_memories(model: SAM2, tmp_path: Path):
    with pytest.raises(UserError, match="the memory selection of the model is 'confident'"):
        write_onnx(model, tmp_path)
    assert not any(tmp_path.iterdir())


def test_configs_that_differ_in_the_memory_selection_are_different_structures():
    recent = CheckpointInfo(ModelConfig("nano", 64))
    assert recent != replace(recent, model=replace(recent.model, memory_selection="confident"))
