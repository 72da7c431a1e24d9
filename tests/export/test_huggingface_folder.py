"""Hugging Face folders of `export`: they hold the whole model, its scores and its licence, and are read back."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import ModelConfig, PreprocessingConfig
from sam2_3dmed_jax.export.model_card import CardRecords, model_card
from sam2_3dmed_jax.hub.resolve import checkpoint_folder
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, read_info, read_weights, save_weights
from sam2_3dmed_jax.sam2.presets import preset_config
from tests.helpers.hub_server import serve
from tests.parity import generated

SUMMARY = {
    "cases": 13,
    "protocol": ["one-click"],
    "protocol_definition": "one positive click per object",
    "ci95_covers": "cases",
    "trained_on_these_cases": "no",
    "classes": {"spleen": {"cases": 13, "dice": {"mean": 0.8666, "ci95": [0.8473, 0.8858]}}},
    "macro": {"dice": {"mean": 0.8666, "ci95": [0.8473, 0.8858]}},
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of a nano SAM2-3dMed, with an evaluation."""
    run = tmp_path_factory.mktemp("runs") / "spleen"
    config = ModelConfig("nano", 64)
    shapes = abstract_model(config)[1]  # no random weights: initialising a model takes seconds
    weights = {name: generated.uniform(name, leaf.shape, 0) for name, leaf in shapes.items()}
    info = CheckpointInfo(config, PreprocessingConfig("lung", "CT"), {"steps": 7})
    save_weights(weights, run / "final", info)  # type: ignore[arg-type] # arrays of the host
    (run / "log.csv").write_text("step,loss\n")
    experiment = {
        "data": {"classes": ["spleen"], "slices": 8, "fold": 2},
        "training": {"batch_size": 4, "learning_rate": 1e-4, "seed": 3, "loss": {"dice": 1.0, "srpp": 0.01}},
    }
    (run / "config.json").write_text(json.dumps(experiment))
    (run / "evaluation").mkdir()
    (run / "evaluation" / "summary.json").write_text(json.dumps(SUMMARY))
    return run


@pytest.fixture(scope="module")
def folder(run_folder: Path) -> Path:
    exported = run_folder.parent / "published"
    assert (
        main(["export", str(run_folder), str(exported), "--to", "huggingface-folder", "--licence", "apache-2.0"]) == 0
    )
    return exported


def test_converting_the_folder_gives_the_weights_modules_and_preprocessing_of_the_run(
    run_folder: Path, folder: Path, tmp_path: Path
):
    assert main(["convert", str(folder), str(tmp_path / "back")]) == 0
    original, back = read_info(run_folder / "final"), read_info(tmp_path / "back")
    assert (back.model, back.preprocessing) == (original.model, original.preprocessing)
    weights, expected = read_weights(tmp_path / "back"), read_weights(run_folder / "final")
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)


def test_the_folder_on_a_hub_is_loaded_by_name_with_its_modules_and_preprocessing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(folder, tmp_path / "hub" / "lab" / "spleen")
    monkeypatch.setenv("SAM2_3DMED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
    with serve(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        info = read_info(checkpoint_folder("hf://lab/spleen"))
    assert info.sam2.srpp and info.sam2.bd
    assert info.preprocessing.window == "lung"


def test_a_folder_that_lacks_its_second_file_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "sam2_3dmed.safetensors").unlink()
    assert main(["convert", str(tmp_path / "copy"), str(tmp_path / "back")]) == 2
    assert "sam2_3dmed.safetensors: it is missing" in capsys.readouterr().err


def test_the_model_card_shows_data_losses_scores_with_intervals_and_licence(folder: Path):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| spleen | 13 | 0.867 [0.847, 0.886] |" in card
    for text in (
        "research use only",
        "dice 1, ",
        "srpp 0.01, ",
        "| fold | 2 |",
        "window lung (level -600, width 1500 HU)",
    ):
        assert text in card


def test_a_card_without_an_evaluation_says_that_scores_and_licence_are_missing():
    card = model_card(CardRecords("name", CheckpointInfo(ModelConfig("nano", srpp=False, bd=False)), "0" * 64))
    assert "license: other" in card and "Licence: not stated" in card and "No evaluation was given" in card


def test_the_hash_file_is_verified_by_sha256sum(folder: Path):
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True)
    assert len(checked.stdout.splitlines()) == len(list(folder.iterdir())) - 1


def test_processor_files_have_the_size_of_the_slices(folder: Path):
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert json.loads((folder / name).read_text())["size"] == {"height": 64, "width": 64}
    assert json.loads((folder / "processor_config.json").read_text())["target_size"] == 64


def test_the_card_says_that_transformers_cannot_load_other_widths_of_memories(folder: Path):
    assert preset_config("nano").mem_dim != 64
    assert "transformers cannot load the preset `nano`" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "stablehlo", "--licence", "mit"], "--licence: stablehlo has no model card"),
        (["--to", "huggingface-folder", "--evaluation", "missing"], "summary.json does not exist"),
        (["--to", "onnx", "--image-size", "100"], "100 is not a multiple of 32"),
        (["--to", "coreml"], "invalid choice: 'coreml'"),
    ],
)
def test_a_wrong_argument_exits_with_2_and_writes_nothing(
    words: list[str], message: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    try:
        code = main(["export", str(run_folder), str(tmp_path / "out"), *words])
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_not_overwritten(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(run_folder), str(run_folder), "--to", "onnx"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").touch()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "onnx"]) == 2
    assert "has no final/ yet" in capsys.readouterr().err
