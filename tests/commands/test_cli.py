"""The command `sam2-3dmed`: the files that it writes, and one line with exit code 2 for each mistake of a user."""

import argparse
import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands import doctor
from sam2_3dmed_jax.commands.command_line import FIELD_FLAGS, READER, Parser
from sam2_3dmed_jax.commands.main import VERBS, main
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig
from sam2_3dmed_jax.evaluation import evaluate
from sam2_3dmed_jax.evaluation.class_rows import score_labels
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.prompts.prompt_types import prompt_flags
from sam2_3dmed_jax.training.dataset import prepared_dataset
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_nifti

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, SplitConfig, TrainingConfig

def get_config():
    data = DataConfig(path={data!r}, split=SplitConfig(folds=2))
    return ExperimentConfig(ModelConfig(preset="nano", image_size=64), data)
"""


@dataclass(frozen=True)
class Files:
    checkpoint: str
    data: str
    image: str
    experiment: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    data = write_phantom_dataset(folder / "data", 2, 0, "pancreas", matrix=48)
    save_model(new_model("nano", 64, with_3dmed=True), folder / "checkpoint")
    (folder / "experiment.py").write_text(EXPERIMENT.format(data=str(data)))
    image = data / "imagesTr" / "pancreas_0001.nii.gz"
    return Files(str(folder / "checkpoint"), str(data), str(image), str(folder / "experiment.py"))


def run(*words: str) -> int:
    try:
        return main(list(words))
    except SystemExit as stop:  # argparse exits this way
        return int(stop.code or 0)


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line on stderr of a command that must end with exit code 2."""
    assert run(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def mask_file(path: Path, image: str, *, cropped: bool = False) -> str:
    source = nib.load(image)
    write_nifti(path, np.zeros(source.shape, np.uint8)[cropped:], source.affine)
    return str(path)


def test_predict_writes_a_label_map_on_the_image_and_a_picture(files: Files, tmp_path: Path):
    out, picture = tmp_path / "seg.nii.gz", tmp_path / "seg.png"
    words = ["--point", "20,20,8", "--point", "30,22,9,1,7", "--out", str(out), "--overlay", str(picture)]
    assert run("predict", files.checkpoint, files.image, *words) == 0
    image, labels = nib.load(files.image), nib.load(out)
    assert labels.shape == image.shape and np.array_equal(labels.affine, image.affine)
    assert set(np.unique(labels.dataobj)) <= {0, 1, 7}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seg.json", "seg.nii.gz", "seg.png"]


def test_evaluate_writes_one_row_per_held_out_case_and_class(files: Files, tmp_path: Path):
    jax.clear_caches()  # as in a new process, so that the case compiles
    assert (
        run("evaluate", files.checkpoint, files.data, "--folds", "2", "--classes", "2,pancreas", "--out", str(tmp_path))
        == 0
    )
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cancer", "pancreas"] and len({row["case"] for row in rows}) == 1
    assert {(row["block"], row["protocol"], row["fold"]) for row in rows} == {("reference-prompted", "one-click", "0")}
    assert {row["trained_on_these_cases"] for row in rows} == {"unknown"}  # no run is stored next to the checkpoint
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["note"] == "for research use only" and summary["protocol"] == ["one-click"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("cases.csv", "distance.csv", "lesions.csv", "reliability.csv", "report.html", "summary.json")
    ]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 2  # one picture per row, drawn on the scan
    assert {row["bd"] for row in rows} == {"yes"} and len({row["seconds"] for row in rows}) == 1
    cost = summary["cost"]
    assert cost["compiling"] == 1 and cost["seconds_a_volume"]["n"] == 0  # the only case compiled
    assert cost["tflops_a_volume"]["mean"] == pytest.approx(float(rows[0]["tflops"]), rel=1e-5)
    assert 0 < cost["parameters"]["bd"] < cost["parameters"]["total"] and cost["peak_host_mib"] > 100
    assert f'<data value="{float(cost["parameters"]["total"])}">' in page and "1 of 1 left out" in page
    pooled = tmp_path / "pooled"
    assert run("evaluate", "--results", str(tmp_path), "--out", str(pooled)) == 0
    assert json.loads((pooled / "summary.json").read_text())["cost"]["parameters"] == cost["parameters"]


def test_evaluate_without_the_boundary_branch_and_with_prompts_from_predictions_records_both(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = []

    def evaluated(predictor, cases, plan, *_):
        ran.append(predictor.model)
        volume = read_volume(cases[0].image)
        labels = read_labels(cases[0].label, volume)
        return score_labels(cases[0].id, labels, labels, volume.grid, plan)

    monkeypatch.setattr(evaluate, "evaluate_model", evaluated)
    words = ["--folds", "2", "--without-bd", "--prompts-from", f"{files.data}/labelsTr", "--out", str(tmp_path)]
    assert run("evaluate", files.checkpoint, files.data, *words) == 0
    assert ran[0].boundary is None and ran[0].slice_position is not None
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["bd"], summary["method"]) == ("left out", "checkpoint without BD")
    assert summary["cost"]["parameters"]["bd"] == 0
    assert (summary["block"], summary["protocol"]) == ("automatic", ["one-click-from-predictions"])
    assert "without the reference" in summary["protocol_definition"]


def plain_copy(files: Files, folder: Path) -> Path:
    """Copy the phantoms without their dataset.json."""
    for part in ("imagesTr", "labelsTr"):
        shutil.copytree(Path(files.data) / part, folder / part)
    return folder


def test_evaluate_accepts_a_folder_without_dataset_json_if_classes_are_given(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = plain_copy(files, tmp_path / "plain")
    common = ["evaluate", files.checkpoint, str(data), "--folds", "2", "--out", str(tmp_path / "scores")]
    assert "no dataset.json that declares labels; give those to score" in mistake(capsys, *common)
    (data / "labelsTr" / "alone.nii.gz").write_bytes(b"")
    assert run(*common, "--classes", "1=pancreas,2") == 0
    assert "note: " in (printed := capsys.readouterr().out) and "'alone.nii.gz'" in printed
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert list(summary["classes"]) == ["pancreas", "2"]


def test_train_finds_the_labels_that_a_folder_does_not_declare(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = plain_copy(files, tmp_path / "plain")
    words = ["train", files.experiment, "--data.path", str(data), "--out", str(tmp_path / "run")]
    assert "data.classes is [0], expected numbers from 1 to 255" in mistake(capsys, *words, "--data.classes", "0")
    error = mistake(capsys, *words, "--data.classes", "256")
    assert "data.classes is [256], expected numbers from 1 to 255" in error
    assert not (tmp_path / "run").exists()
    prepared = prepared_dataset(ExperimentConfig(data=DataConfig(path=str(data))), tmp_path)
    assert prepared.labels == {1: "label 1", 2: "label 2"}


def test_train_accepts_an_archive_and_evaluate_refuses_it(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "data.tar"
    with tarfile.open(file, "w") as tar:
        tar.add(files.data, "data")
    out = ["--out", str(tmp_path / "out")]
    error = mistake(capsys, "evaluate", files.checkpoint, str(file), *out)
    assert f"{file} is an archive, expected a folder here; unpack it" in error
    assert prepared_dataset(ExperimentConfig(data=DataConfig(path=str(file))), tmp_path).ids


def test_evaluate_scores_the_files_of_any_method(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels = str(Path(files.data) / "labelsTr")
    words = ["--predictions", labels, "--references", labels, "--classes", "1=pancreas", "--out", str(tmp_path)]
    assert run("evaluate", *words) == 0
    assert "pancreas: mean Dice 1.000 over 2 cases" in capsys.readouterr().out


def test_phantom_writes_a_dataset(tmp_path: Path):
    assert run("phantom", str(tmp_path / "data"), "--cases", "1", "--task", "lung") == 0
    assert (tmp_path / "data" / "dataset.json").exists()


def test_doctor_finds_no_problem_in_this_installation(capsys: pytest.CaptureFixture[str]):
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    assert "jax" in printed and "cpu" in printed and "cache" in printed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--point", "20,20,999"], "z = 999 is outside"),
        (["--point=-3,20,8"], "x = -3 is outside"),
        (["--box", "2,2,2,5,5,500"], "z = 500 is outside"),
        (["--point", "20,20"], "x,y,z"),
        (["--point", "a,b,c"], "x,y,z"),
        (["--point", "20,20,8,5"], "label 5"),
        (["--point", "20,20,8,1,0"], "object id"),
        (["--point", "20,20,8,1,inf"], "object id"),
        (["--box", "1,1,1,5,5"], "i0,j0,k0,i1,j1,k1"),
        (["--mask", "absent.nii.gz"], "absent.nii.gz does not exist"),
        ([], "there are no prompts"),
    ],
)
def test_an_invalid_prompt_is_reported_in_one_line_and_writes_nothing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
):
    out = tmp_path / "out" / "seg.nii.gz"
    assert named in mistake(capsys, "predict", files.checkpoint, files.image, *words, "--out", str(out))
    assert not out.parent.exists()


def test_an_empty_mask_is_refused_as_a_prompt(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mask = mask_file(tmp_path / "mask.nii.gz", files.image)
    out = tmp_path / "seg.nii.gz"
    assert f"{mask} is empty" in mistake(
        capsys, "predict", files.checkpoint, files.image, "--mask", mask, "--out", str(out)
    )
    assert not out.exists()


def test_a_label_map_on_another_grid_is_refused(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mask = mask_file(tmp_path / "mask.nii.gz", files.image, cropped=True)
    out = tmp_path / "seg.nii.gz"
    assert "is not on the grid" in mistake(
        capsys, "predict", files.checkpoint, files.image, "--mask", mask, "--out", str(out)
    )
    assert not out.exists()


def test_a_missing_image_or_checkpoint_is_named(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rest = ["--point", "1,1,1", "--out", str(tmp_path / "seg.nii.gz")]
    assert "absent.nii.gz does not exist" in mistake(capsys, "predict", files.checkpoint, "absent.nii.gz", *rest)
    assert "the checkpoint does not exist" in mistake(capsys, "predict", str(tmp_path / "absent"), files.image, *rest)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_not_a_nifti_name_is_refused_before_any_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["absent", "absent.nii.gz", "--point", "1,1,1", "--out", str(tmp_path / "seg.png")]
    assert ".nii.gz" in mistake(capsys, "predict", *words)


def test_the_image_itself_as_output_is_refused_and_kept(files: Files, capsys: pytest.CaptureFixture[str]):
    before = Path(files.image).read_bytes()
    words = [files.checkpoint, files.image, "--point", "1,1,1", "--out", files.image]
    assert "is the image itself" in mistake(capsys, "predict", *words)
    assert Path(files.image).read_bytes() == before


def test_a_picture_that_cannot_be_written_is_a_mistake_not_a_bug(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    words = ["--point", "20,20,8", "--point", "30,22,9,1,7", "--out", str(tmp_path / "seg.nii.gz")]
    overlay = str(tmp_path / "file" / "seg.png")
    assert run("predict", files.checkpoint, files.image, *words, "--overlay", overlay) == 2
    assert f"error: --overlay: {overlay} cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_whose_weights_are_of_another_preset_is_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_model(new_model("nano", 64), tmp_path / "checkpoint")
    config = tmp_path / "checkpoint" / "config.json"
    config.write_text(config.read_text().replace('"nano"', '"sam2.1_hiera_tiny"'))
    words = [str(tmp_path / "checkpoint"), files.image, "--point", "1,1,1", "--out", str(tmp_path / "seg.nii.gz")]
    assert "do not fit model.preset sam2.1_hiera_tiny" in mistake(capsys, "predict", *words)


def test_training_from_a_checkpoint_of_another_preset_is_refused_and_starts_no_run(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--out", str(tmp_path / "run"), "--model.init", files.checkpoint, "--model.preset", "sam2.1_hiera_tiny"]
    assert "is of preset nano" in mistake(capsys, "train", files.experiment, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model.image_sise", "64"], "--model.image_sise"),
        (["--training.steps", "many"], "--training.steps"),
        (["--model.srpp", "perhaps"], "--model.srpp"),
        (["--model.preset", "micro"], "'micro' does not exist"),
        (["--model.srpp", "false", "--data.path", "absent"], "absent does not exist"),
        (["--data.fold", "9"], "data.fold"),
    ],
)
def test_a_field_that_does_not_fit_is_named_and_starts_no_run(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
):
    assert named in mistake(capsys, "train", files.experiment, "--out", str(tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [("value = 1", "get_config"), ("def get_config(): return 3", "ExperimentConfig"), ("1 +", "SyntaxError")],
)
def test_a_file_that_is_not_an_experiment_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
):
    file = tmp_path / "experiment.py"
    file.write_text(text)
    assert named in mistake(capsys, "train", str(file), "--out", str(tmp_path / "run"))
    assert "the experiment file does not exist" in mistake(capsys, "train", "absent.py", "--out", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--protocol", "oracle"], "one-click, box-mid"),
        (["--classes", "9"], "no label 9"),
        (["--classes", "knee"], "one of pancreas, cancer"),
        (["--fold", "2"], "2 does not exist"),
        (["--splits", "absent.json"], "data.split.file: absent.json does not exist"),
        (["--patients", "absent.csv"], "data.split.patients: absent.csv does not exist"),
        (["--split", "60/40"], "60/40"),
        (["--split", "80/20", "--split-seed", "-1"], "data.split.seed: -1"),
        (["--predictions", "elsewhere"], "--references"),
        (["--predictions", "here", "--references", "there"], "give one of CKPT and DATA"),
        (["--remap", "2=1"], "--remap is for --predictions"),
        (["--targets", "2,1+2"], "all labels of 2 belong to later objects"),
        (["--tolerance-mm", "wide"], "--tolerance-mm: 'wide'"),
        (["--definition", "plastimatch"], "surface-distance, monai, medpy"),
        (["--prompts-from", "absent"], "absent: the folder does not exist"),
        (["--nearest-component"], "--nearest-component is for --predictions"),
        (["--band-mm", "0"], "--band-mm: 0.0 is not the width"),
        (["--compare", "absent"], "absent holds no cases.csv"),
        (["--zoom", "0"], "--zoom is '0', expected auto, off, or the side of the region in mm"),
        (["--zoom", "auto", "--protocol", "oracle-clip"], "--zoom: it is for whole volumes, and oracle-clip segments"),
    ],
)
def test_an_invalid_evaluation_is_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
):
    out = tmp_path / "scores"
    common = [files.checkpoint, files.data, "--folds", "2", "--out", str(out)]
    assert named in mistake(capsys, "evaluate", *common, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["segment"],
        ["predict"],
        ["doctor", "--fast"],
        ["phantom", "x", "--cases", "some"],
        ["phantom", "x", "--task", "knee"],
        ["phantom", "x", "--cases", "0"],
    ],
)
def test_a_verb_or_flag_that_does_not_exist_is_reported_in_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    mistake(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_bug_is_reported_in_one_line_and_debug_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(doctor, "run", broken)
    assert run("doctor") == 1
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and "oops" in printed and "--debug" in printed
    assert run("doctor", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", VERBS)
def test_every_argument_of_a_verb_is_a_field_of_its_options(name: str):
    parser = Parser()
    VERBS[name].add_arguments(parser)
    arguments = (
        {action.dest for action in parser._actions}
        - {"help", argparse.SUPPRESS}
        - {flag.name for flag in prompt_flags()}
    )
    fields = {field.name for field in dataclasses.fields(VERBS[name].Options) if READER not in field.metadata}
    own = {flag.name for flag in prompt_flags()} & fields  # `evaluate` has a flag of the name of a prompt flag
    assert fields - {"debug", FIELD_FLAGS} == arguments | own


def test_python_m_runs_the_command():
    module = [sys.executable, "-m", "sam2_3dmed_jax", "--help"]
    shown = subprocess.run(
        module, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0 and shown.stdout.startswith("usage: sam2-3dmed ")
    assert set(re.findall("^    ([a-z]+)", shown.stdout, re.MULTILINE)) >= set(VERBS)


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupted)
    assert run("doctor") == 130


def test_a_process_prints_a_mistake_on_stderr_and_help_without_loading_jax(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    module = [sys.executable, "-X", "importtime", "-m", "sam2_3dmed_jax.commands.main"]
    shown = subprocess.run([*module, "--help"], env=environment, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "predict" in shown.stdout
    assert not {line.split("|")[-1].strip() for line in shown.stderr.splitlines()} & {"jax", "numpy", "tyro"}
    words = [str(tmp_path / "absent"), str(tmp_path / "absent.nii.gz"), "--out", str(tmp_path / "seg.nii.gz")]
    module = [sys.executable, "-m", "sam2_3dmed_jax.commands.main"]
    failed = subprocess.run([*module, "predict", *words], env=environment, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("error: ") and len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        "phantom LONG",
        "prepare LONG out",
        "inspect LONG",
        "train demo --data.path LONG --out o",
        "predict LONG x --out o.nii",
    ],
)
def test_a_name_too_long_for_the_file_system_is_one_line(words: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.replace("LONG", 300 * "x").split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", LONG],
        ["predict", "nothere", "--cases", LONG, "--out", "o"],
        ["evaluate", "--results", LONG, "--out", "o"],
        ["evaluate", "--predictions", LONG, "--references", ".", "--out", "o"],
        ["train", f"{LONG}.py", "--out", "r"],
    ],
)
def test_a_name_that_is_too_long_for_the_file_system_is_one_sentence(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and len(line) <= 300
    assert not any(tmp_path.iterdir())
