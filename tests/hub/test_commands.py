"""The commands that take the name of weights in place of a checkpoint, `download`, and files of other formats."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import ExperimentConfig, ModelConfig, SweepSpec
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.evaluation import evaluate
from sam2_3dmed_jax.evaluation.sweep.entries import read_entries
from sam2_3dmed_jax.hub.catalog import CATALOG, find_weights
from sam2_3dmed_jax.hub.resolve import checkpoint_folder
from sam2_3dmed_jax.model.checkpoint import load_weights, read_info
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.sam2.presets import PRESETS
from sam2_3dmed_jax.training.setup import starting_weights
from sam2_3dmed_jax.volume.io import write_nifti
from tests.helpers.hub_server import Hub
from tests.hub.conftest import ADDRESS, REPOSITORY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).normal(40, 100, (24, 20, 5))
    write_nifti(tmp_path / "ct.nii.gz", noise.astype(np.int16), np.diag([-0.8, -0.8, 3.0, 1.0]))
    return tmp_path / "ct.nii.gz"


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the one line on stderr of a command that must end with exit code 2."""
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.slow  # compiles a model
def test_predict_segments_the_same_by_name_and_by_the_folder_of_the_checkpoint(
    hub: Hub, native: Path, image: Path, tmp_path: Path
):
    named, local = tmp_path / "named.nii.gz", tmp_path / "local.nii.gz"
    assert main(["predict", str(image), "--model", ADDRESS, "--point", "12,10,2", "--out", str(named)]) == 0
    assert main(["predict", str(native), str(image), "--point", "12,10,2", "--out", str(local)]) == 0
    masks = [np.asarray(nib.load(path).dataobj) for path in (named, local)]
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CKPT", "IMAGE", "--model", "x"], "--model: CKPT is given too (CKPT); leave out one of them"),
        (["scan.nii.gz"], "scan.nii.gz is an image, and CKPT is missing; give one, or a name such as --model sam2.1"),
        ([], "CKPT is missing; give the folder of a checkpoint, or a name such as --model sam2.1_hiera_tiny"),
        (["--model", "sam2.1_hiera_tiny"], "IMAGE is missing"),
    ],
)
def test_predict_reports_a_missing_or_second_checkpoint(words, message, capsys):
    assert message in mistake(capsys, "predict", *words, "--out", "seg.nii.gz")


@pytest.mark.parametrize("layout", ["meta", "transformers"])
def test_predict_names_another_format_and_the_command_that_converts_it(
    layout, native: Path, transformers_folder: Path, image: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if layout == "meta":
        source = Path("my model.safetensors")
        assert main(["convert", str(native), str(source), "--to", "meta"]) == 0
    else:
        source = Path("folder")
        source.symlink_to(transformers_folder)
    words = ["predict", source, image, "--point", "12,10,2", "--out", "seg.nii.gz"]
    command = re.search(r"convert it once: sam2-3dmed (.*)", mistake(capsys, *words))
    arguments = shlex.split(command[1])
    assert main(arguments) == 0
    assert read_info(arguments[-1]).sam2.preset == "nano"


def test_inspect_and_compare_take_names(hub: Hub, native: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", ADDRESS, "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["preset"] == "nano" and description["provenance"]["source"].startswith(f"hf://{REPOSITORY}@")
    assert main(["compare", ADDRESS, str(native)]) == 0
    assert capsys.readouterr().out.startswith("equal: ")


def test_evaluate_scores_the_folder_of_a_name(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    scored = []
    monkeypatch.setattr(evaluate, "score_checkpoint", lambda folder, *_: scored.append(folder) or [])
    assert main(["evaluate", ADDRESS, "data", "--out", str(tmp_path / "scores")]) == 0
    assert scored == [str(checkpoint_folder(ADDRESS))] and Path(scored[0]).name == "nano"


def test_a_sweep_scores_the_folder_of_a_name_under_this_name(hub: Hub, tmp_path: Path):
    dataset = read_dataset(write_phantom_dataset(tmp_path / "data", 5, 0, "spleen", matrix=32))
    (entry,) = read_entries(SweepSpec(checkpoints=(ADDRESS,), folds=(0,)), dataset)
    assert entry.model == ADDRESS and entry.checkpoint == str(checkpoint_folder(ADDRESS))


def test_training_starts_from_weights_by_name(hub: Hub, native: Path):
    config = ExperimentConfig(ModelConfig("nano", 64, srpp=False, bd=False, init=ADDRESS))
    (started, _), expected = starting_weights(config), load_weights(native, replace(config.model, init=""))
    assert started.keys() == expected.keys()
    assert all(np.array_equal(started[name], expected[name]) for name in started)


def test_a_given_file_is_used_in_place_of_the_network(hub: Hub, native: Path, transformers_folder: Path, capsys):
    file = transformers_folder / "model.safetensors"
    assert main(["download", ADDRESS, "--from-file", str(file)]) == 0
    assert "nano is ready in" in capsys.readouterr().out
    assert not hub.requests
    assert main(["compare", ADDRESS, str(native)]) == 0


def test_a_given_file_must_have_the_hash_of_the_table(hub: Hub, transformers_folder: Path, tmp_path: Path, capsys):
    file = transformers_folder / "model.safetensors"
    line = mistake(capsys, "download", "sam2.1_hiera_tiny", "--from-file", file)
    assert "is not model.safetensors of sam2.1_hiera_tiny" in line and "expected 48c14467e5cf..." in line
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_download_without_a_name_lists_all_names_with_their_state(hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert main(["download"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [weights.name for weights in CATALOG]
    assert all("not downloaded" in line for line in lines) and not hub.requests


def test_every_official_preset_is_a_name_and_so_is_its_repository():
    official = set(PRESETS) - {"nano"}
    assert {weights.name for weights in CATALOG if weights.repository.startswith("facebook/")} == official
    for preset in official:
        found = find_weights(f"facebook/{preset.replace('_', '-')}")
        assert found and found.preset == preset and found is find_weights(preset.upper())


def test_download_refuses_a_name_that_is_not_in_the_table(hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert "'sam2-3dmed download' lists them" in mistake(capsys, "download", "sam3")
    assert not hub.requests


@pytest.mark.slow  # two processes import JAX
def test_two_processes_download_at_once_with_the_settings_of_the_environment(hub: Hub, tmp_path: Path):
    folders = {"HF_HOME": str(tmp_path / "hf"), "SAM2_3DMED_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **folders, "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-m", "sam2_3dmed_jax", "download", ADDRESS]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert (tmp_path / "hf" / "hub").is_dir()
    assert read_info(checkpoint_folder(ADDRESS)).sam2.preset == "nano"
    assert not list((tmp_path / "cache" / "weights").rglob("*.tmp*"))
