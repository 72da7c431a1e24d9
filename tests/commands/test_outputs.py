"""Outputs of the commands: inputs and other files of the user stay as they are, and no disk error is a bug."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.phantom import write_phantom_dataset

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig


def get_config():
    return ExperimentConfig(ModelConfig(preset="nano", image_size=64), DataConfig(path="data"))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(new_model("nano", 64), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image, a label map, prompts and a dataset of two cases."""
    monkeypatch.chdir(tmp_path)
    voxels = np.random.default_rng(0).integers(-100, 200, (12, 10, 6)).astype(np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[3:8, 3:8, 2:5] = 1
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    Path("d/imagesTr").mkdir(parents=True)
    Path("d/labelsTr").mkdir()
    for name, array in (("ct", voxels), ("o_object1", voxels), ("lab", labels), ("drawn", labels)):
        nib.save(nib.Nifti1Image(array, affine), f"{name}.nii.gz")
    for case in ("c0", "c1"):
        nib.save(nib.Nifti1Image(voxels, affine), f"d/imagesTr/{case}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), f"d/labelsTr/{case}.nii.gz")
    pairs = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("c0", "c1")]
    record = {"name": "Tiny", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "training": pairs}
    Path("d/dataset.json").write_text(json.dumps(record))
    Path("p.json").write_text(json.dumps({"objects": [{"points": [{"voxel": [6, 5, 2]}]}, {"mask": "drawn.nii.gz"}]}))
    os.link("ct.nii.gz", "hard.nii.gz")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files by path, and the folders, which are empty bytes."""
    paths = [path for path in folder.rglob("*") if path.is_file() or path.is_dir()]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must end with 2 and one line, and change no file; return the line."""
    before = contents(Path())
    code = main([*words])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith("error: "), error
    assert contents(Path()) == before
    return error


CLICK = ("--point", "6,5,2")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("ct.nii.gz", "--mask", "lab.nii.gz", "--out", "lab.nii.gz"), "--out: lab.nii.gz is --mask itself"),
        (
            ("ct.nii.gz", *CLICK, "--reference", "lab.nii.gz", "--overlay", "o.png", "--out", "lab.nii.gz"),
            "--out: lab.nii.gz is --reference itself",
        ),
        (
            ("ct.nii.gz", "--prompts", "p.json", "--overlay", "p.json", "--out", "o.nii.gz"),
            "--overlay: p.json is --prompts itself",
        ),
        (
            ("ct.nii.gz", "--prompts", "p.json", "--out", "drawn.nii.gz"),
            "--out: drawn.nii.gz is the mask of a prompt file itself",
        ),
        (
            ("o_object1.nii.gz", *CLICK, "--separate", "--out", "o.nii.gz"),
            "--separate: o_object1.nii.gz is the image itself",
        ),
        (
            ("ct.nii.gz", "--prompts-from", "lab.nii.gz", "--statistics", "lab.nii.gz", "--out", "o.nii.gz"),
            "--statistics: lab.nii.gz is --prompts-from itself",
        ),
        (("ct.nii.gz", *CLICK, "--out", "hard.nii.gz"), "--out: hard.nii.gz is the image itself"),
        (
            ("ct.nii.gz", *CLICK, "--overlay", "o.nii.gz", "--out", "o.nii.gz"),
            "--overlay: o.nii.gz is the same file as --out",
        ),
        (
            (
                "ct.nii.gz",
                *CLICK,
                "--separate",
                "--planes",
                "o_object2.nii.gz",
                "--out",
                "o.nii.gz",
                "--prompts",
                "p.json",
            ),
            "--separate: o_object2.nii.gz is the same file as --planes",
        ),
        (
            ("ct.nii.gz", *CLICK, "--overlay", "o.json", "--out", "o.nii.gz"),
            "--overlay: o.json is the same file as --out",
        ),
        (("ct.nii.gz", *CLICK, "--out", "~/o.nii.gz"), "only a shell expands"),
        (("ct.nii.gz", *CLICK, "--out", "lab.nii.gz/o.nii.gz"), "lab.nii.gz is a file; give another path"),
    ],
)
def test_predict_replaces_no_input_and_no_other_output(words, reason, checkpoint, capsys):
    assert reason in refusal(capsys, "predict", checkpoint, *words)


def test_predict_on_a_table_replaces_the_image_of_no_case(checkpoint, capsys):
    Path("cases.csv").write_text('image,name,point\nct.nii.gz,lab,"6,5,2"\nlab.nii.gz,x,"6,5,2"\n')
    error = refusal(capsys, "predict", checkpoint, "--cases", "cases.csv", "--out", ".")
    assert "--out: ./lab.nii.gz is the image itself" in error


def test_evaluate_and_prepare_replace_no_file_of_the_dataset(checkpoint, capsys):
    words = ("evaluate", checkpoint, "d", "--metrics", "overlap", "--folds", "2", "--save", "d/labelsTr", "--out", "ev")
    assert "is a file of DATA, which would be replaced" in refusal(capsys, *words)
    words = ("prepare", "d", "pr", "--workers", "1", "--preview", "d/imagesTr/c0.nii.gz")
    assert "--preview: d/imagesTr/c0.nii.gz is a file of DATASET" in refusal(capsys, *words)


def test_evaluate_does_not_replace_the_results_that_it_reads(capsys):
    words = ["evaluate", "--predictions", "d/labelsTr", "--references", "d/labelsTr", "--metrics", "overlap"]
    assert main([*words, "--out", "ev"]) == 0
    capsys.readouterr()
    error = refusal(capsys, "evaluate", "--results", "ev", "--out", "ev")
    assert "--out: ev/cases.csv is a file of --results, which would be replaced" in error


def test_evaluate_removes_no_file_of_the_user():
    Path("ev").mkdir()
    Path("ev/comparison.csv").write_text("mine")
    words = ["evaluate", "--predictions", "d/labelsTr", "--references", "d/labelsTr", "--metrics", "overlap"]
    for _ in range(2):
        Path("ev/comparison.csv").write_text("mine")
        Path("ev/cases.csv").unlink(missing_ok=True)
        assert main([*words, "--out", "ev"]) == 0
        assert Path("ev/comparison.csv").read_text() == "mine"


def test_a_checkpoint_with_other_files_is_not_replaced(checkpoint, capsys):
    assert main(["convert", checkpoint, "w.safetensors"]) == 0
    assert main(["convert", "w.safetensors", "c"]) == 0
    os.link("w.safetensors", "c/original.safetensors")
    capsys.readouterr()
    assert "c contains" in refusal(capsys, "convert", "c/original.safetensors", "c")
    error = refusal(capsys, "convert", "w.safetensors", "c")
    assert "c contains original.safetensors besides a checkpoint" in error
    with pytest.raises(UserError, match=r"c contains original\.safetensors besides a checkpoint"):
        save_model(new_model("nano", 64), "c")
    Path("c/original.safetensors").unlink()
    Path("c/.DS_Store").touch()
    assert main(["convert", "w.safetensors", "c"]) == 0


NO_FOLDERS = (
    "lab.nii.gz/x",
    "/dev/null/x",
    "/proc/x/y",
    "/sys/x",
    "x" * 300,
    "loop",
    "lab.nii.gz",
    "pipe",
    "/dev/null",
)


@pytest.mark.parametrize("out", NO_FOLDERS)
@pytest.mark.parametrize(
    "verb",
    [
        ("phantom", "--cases", "1"),
        ("demo", "--out"),
        ("prepare", "d"),
        ("train", "e.py", "--data.path", "pr", "--out"),
        ("evaluate", "--predictions", "d/labelsTr", "--references", "d/labelsTr", "--out"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(verb, out, capsys):
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    Path("e.py").write_text(EXPERIMENT)
    error = refusal(capsys, *verb, out)
    assert "cannot be written" in error or f"{out} is a file; give a folder" in error


def test_a_link_to_a_folder_that_does_not_exist_yet_is_followed():
    Path("link").symlink_to("made/later")
    write_phantom_dataset("link", 1, matrix=32)
    assert Path("link").is_symlink() and Path("made/later/dataset.json").is_file()


def test_a_negative_seed_of_phantom_is_refused_and_leaves_no_folder(capsys):
    assert "seed -1: change" in refusal(capsys, "phantom", "out", "--cases", "1", "--seed=-1")


# The limit is set in the new process: code between `fork` and `exec` may deadlock next to the threads of JAX.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from sam2_3dmed_jax.commands.main import main
sys.exit(main(sys.argv[2:]))
"""


def limited(limit: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process whose files may not be larger than a limit in bytes, as on a disk that is full."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def fails_in_one_line(limit: int, *words: str) -> None:
    """Check that a command ends with one line that gives the reason, and leaves every file as it was."""
    before = contents(Path())
    run = limited(limit, *words)
    lines = run.stderr.splitlines()
    assert run.returncode == 2 and len(lines) == 1 and "cannot be written (File too large)" in lines[0], run.stderr
    assert contents(Path()) == before and not list(Path().glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("words", ["x", "x.safetensors", "old", "x --to transformers"])
def test_convert_onto_a_full_disk_fails_in_one_line_and_leaves_nothing(words, checkpoint):
    assert main(["convert", checkpoint, "w.safetensors"]) == 0
    assert main(["convert", checkpoint, "old"]) == 0
    fails_in_one_line(30_000, "convert", "w.safetensors", *words.split())


@pytest.mark.slow
def test_phantom_and_evaluate_on_a_full_disk_fail_in_one_line_and_leave_nothing():
    fails_in_one_line(30_000, "phantom", "--cases", "1", "ph")
    words = ("--predictions", "d/labelsTr", "--references", "d/labelsTr", "--metrics", "overlap")
    fails_in_one_line(500, "evaluate", *words, "--out", "ev")


@pytest.mark.slow
def test_prepare_on_a_full_disk_ends_in_one_sentence_and_resumes_later():
    words = ("prepare", "d", "pr", "--workers", "1")
    run = limited(500, *words)
    *progress, error = run.stderr.splitlines()
    assert run.returncode == 2 and all(line.startswith("cases: ") for line in progress), run.stderr
    assert error.startswith("error: ") and "cannot be written (File too large)" in error
    assert not Path("pr/index.json").exists() and not list(Path("pr").rglob("*.arrayrecord*"))
    assert main([*words]) == 0
