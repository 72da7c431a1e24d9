"""Commands on damaged compressed files: one line that names the file, before a model runs, and nothing written."""

import csv
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from tests.helpers.compressed_files import AFFINE, WRITERS, flipped, intact, labels, scan
from tests.helpers.nifti_files import make

PREPARED = (".nii.gz", ".nrrd gzip", ".nrrd bzip2", ".mha")  # formats of one file, which datasets may have
LAST_OF_FOLD_0 = "c7"  # of nnU-Net's folds of ten cases, which hold out two cases each


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(new_model("nano", 64, with_3dmed=True), folder)
    return str(folder)


@pytest.fixture
def no_model_runs(monkeypatch):
    def run(*_, **__):
        pytest.fail("the model ran")

    monkeypatch.setattr(VolumePredictor, "start", run)
    monkeypatch.setattr(VolumePredictor, "predict", run)


def write(path: Path, name: str, array, change=intact) -> Path:
    """Write a file of one of the formats under another stem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{path.name}"
    scratch.mkdir()
    file = WRITERS[name](scratch, array, change)
    target = path.with_name(path.name + file.name.removeprefix("a"))
    file.rename(target)
    shutil.rmtree(scratch)
    return target


def line(capsys, *words) -> str:
    """Return the error line of a command that ends with exit code 2."""
    assert main([*map(str, words)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def dataset(folder: Path, name: str = ".nii.gz", image=intact, label=intact, cases: int = 2, bad: str = "c1") -> Path:
    """Write a Decathlon dataset, of which one case may be damaged."""
    entries = []
    for case in (f"c{number}" for number in range(cases)):
        change = (image, label) if case == bad else (intact, intact)
        files = (
            write(folder / "imagesTr" / case, name, scan(), change[0]),
            write(folder / "labelsTr" / case, name, labels(), change[1]),
        )
        entries.append(dict(zip(("image", "label"), (f"./{f.parent.name}/{f.name}" for f in files), strict=True)))
    declared = {"0": "background", "1": "a", "2": "b", "3": "c"}
    record = {"name": "X", "modality": {"0": "CT"}, "labels": declared, "training": entries, "test": []}
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("part", ["image", "mask", "prompts", "reference"])
def test_predict_refuses_a_damaged_file_of_a_case(tmp_path, checkpoint, capsys, no_model_runs, part):
    image = make(tmp_path / "whole.nii", scan(), AFFINE)
    bad = write(tmp_path / "bad", ".nii.gz", scan() if part == "image" else labels(), flipped)
    (tmp_path / "p.json").write_text(json.dumps({"objects": [{"id": 1, "mask": str(bad)}]}))
    words = {
        "image": (bad, "--point", "5,5,4"),
        "mask": (image, "--mask", bad),
        "prompts": (image, "--prompts", tmp_path / "p.json"),
        "reference": (image, "--point", "5,5,4", "--reference", bad, "--overlay", tmp_path / "o.png"),
    }[part]
    assert str(bad) in line(capsys, "predict", checkpoint, *words, "--out", tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize("part", ["predictions", "references"])
def test_evaluate_refuses_a_damaged_label_map_of_either_folder(tmp_path, capsys, part):
    for folder in ("predictions", "references"):
        make_folder = tmp_path / folder
        for case in ("c0", "c1"):
            write(make_folder / case, ".nii.gz", labels(), flipped if (folder, case) == (part, "c1") else intact)
    words = ("--predictions", tmp_path / "predictions", "--references", tmp_path / "references")
    message = line(capsys, "evaluate", *words, "--classes", "1=a", "--out", tmp_path / "out")
    assert str(tmp_path / part / "c1.nii.gz") in message


@pytest.mark.parametrize("part", ["image", "label"])
def test_evaluate_refuses_a_damaged_case_before_the_first_case_is_segmented(
    tmp_path, checkpoint, capsys, no_model_runs, part
):
    folder = dataset(tmp_path / "data", cases=10, bad=LAST_OF_FOLD_0, **{part: flipped})
    message = line(capsys, "evaluate", checkpoint, folder, "--fold", 0, "--out", tmp_path / "out")
    assert str(folder / f"{part}sTr" / f"{LAST_OF_FOLD_0}.nii.gz") in message


def test_sweep_refuses_a_damaged_case_before_the_first_case_is_segmented(tmp_path, checkpoint, capsys, no_model_runs):
    folder = dataset(tmp_path / "data", label=flipped, cases=10, bad=LAST_OF_FOLD_0)
    spec = tmp_path / "spec.py"
    fields = f"checkpoints=({checkpoint!r},), data={str(folder)!r}, folds=(0,), prompt=('point',)"
    code = f"from sam2_3dmed_jax.config import SweepSpec\n\n\ndef get_spec():\n    return SweepSpec({fields})\n"
    spec.write_text(code)
    message = line(capsys, "sweep", spec, "--out", tmp_path / "out")
    assert str(folder / "labelsTr" / f"{LAST_OF_FOLD_0}.nii.gz") in message


@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PREPARED)
def test_prepare_refuses_a_damaged_case_of_a_folder_or_archive(tmp_path, name, packed, part):
    source = dataset(tmp_path / "Task99_X", name, **{part: flipped})
    if packed:
        with tarfile.open(tmp_path / "Task99_X.tar", "w") as archive:
            archive.add(source, "Task99_X")
        source = tmp_path / "Task99_X.tar"
    main(["prepare", str(source), str(tmp_path / "out")])
    with open(tmp_path / "out" / "refused.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == "c1"
    assert f"{part}sTr/c1." in row["reason"]
    assert "damaged" in row["reason"]
    assert sorted(path.name for path in (tmp_path / "out" / "shards").iterdir()) == ["c0.arrayrecord"]


def test_a_native_checkpoint_with_a_truncated_file_is_one_line_and_nothing_else_on_stderr(
    tmp_path, checkpoint, capfd, caplog
):
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    largest = max(
        (path for path in (damaged / "weights").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    os.truncate(largest, 100)
    for _ in range(3):  # other reads of the same checkpoint fail after the first one has been reported
        assert main(["compare", str(damaged), checkpoint]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 3 and all("damaged: its weights cannot be read (" in error for error in errors)
    image = make(tmp_path / "ct.nii", scan(), AFFINE)
    assert main(["predict", str(damaged), str(image), "--point", "5,5,4", "--out", str(tmp_path / "o.nii.gz")]) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert not caplog.records
    assert "damaged: its weights cannot be read (" in error and not (tmp_path / "o.nii.gz").exists()
