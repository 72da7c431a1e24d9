"""Folders of files with upper-case endings, two files of one case, or other files, in each command that lists one."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own abbreviation

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.prepared import read_prepared

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (16, 14, 6)
RNG = np.random.default_rng(0)
SCAN = RNG.integers(-100, 200, SHAPE).astype(np.int16)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[4:10, 5:9, 2:5] = 1
ENDINGS = (".NII.GZ", ".Nii", ".NRRD", ".MHA")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(new_model("nano", 64), folder)
    return str(folder)


def save(path: Path, voxels: np.ndarray) -> Path:
    """Write a file, also with an ending in upper case, without the code under test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lower = path.with_name(path.name.lower() + ".part" + path.name[path.name.index(".") :].lower())
    if ".nii" in lower.name:
        nib.save(nib.Nifti1Image(voxels, AFFINE), lower)
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
        image.SetSpacing((1.0, 1.0, 2.0))  # the affine of nibabel in LPS is the identity times the spacing
        sitk.WriteImage(image, str(lower))
    return lower.rename(path)


def packed_task(task: Path) -> Path:
    """Return the archive of a dataset."""
    archive = task.with_name(f"{task.name}.TAR")
    with tarfile.open(archive, "w") as tar:
        tar.add(task, task.name)
    return archive


def evaluate(root: Path, *words: str) -> dict[str, str]:
    """Return the Dice of each case."""
    folders = ["--predictions", str(root / "preds"), "--references", str(root / "refs"), "--out", str(root / "out")]
    assert main(["evaluate", *folders, *words]) == 0
    with (root / "out" / "cases.csv").open(newline="") as file:
        return {row["case"]: row["dice"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("part", ["preds", "refs"])
def test_predictions_and_references_with_any_ending_are_scored(tmp_path: Path, part: str, ending: str):
    for folder in ("preds", "refs"):
        save(tmp_path / folder / "c0.nii.gz", LABELS)
        save(tmp_path / folder / f"c1{ending if folder == part else '.nii.gz'}", LABELS)
    assert evaluate(tmp_path) == {"c0": "1", "c1": "1"}


def test_two_predictions_of_one_case_are_refused_before_anything_is_scored(tmp_path: Path, capsys):
    for name in ("refs/c1.nii.gz", "preds/c1.nii.gz", "preds/c1.NII.GZ"):
        save(tmp_path / name, LABELS)
    folders = ["--predictions", str(tmp_path / "preds"), "--references", str(tmp_path / "refs")]
    assert main(["evaluate", *folders, "--out", str(tmp_path / "out")]) == 2
    assert "c1.NII.GZ and c1.nii.gz are both of case c1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_scans_of_one_case_are_refused(tmp_path: Path, capsys):
    for name in ("refs/c1.nii.gz", "preds/c1.nii.gz", "scans/c1.nii.gz", "scans/c1_0000.nii.gz"):
        save(tmp_path / name, LABELS)
    folders = ["--predictions", str(tmp_path / "preds"), "--references", str(tmp_path / "refs")]
    assert main(["evaluate", *folders, "--images", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]) == 2
    assert "c1.nii.gz and c1_0000.nii.gz are both of case c1" in capsys.readouterr().err


def test_files_that_evaluate_leaves_out_are_named(tmp_path: Path, capsys):
    for folder in ("preds", "refs"):
        save(tmp_path / folder / "c0.nii.gz", LABELS)
    np.save(tmp_path / "preds" / "c0.npy", LABELS)
    (tmp_path / "refs" / "plan.json").write_text("{}")
    evaluate(tmp_path)
    printed = capsys.readouterr().err
    assert "preds: 1 file left out" in printed and "c0.npy" in printed
    assert "refs: 1 file left out" in printed and "plan.json" in printed


@pytest.mark.parametrize("ending", [*ENDINGS, ".HDR"])
def test_a_case_with_any_ending_is_segmented(checkpoint: str, tmp_path: Path, ending: str):
    cases = tmp_path / "cases"
    if ending == ".HDR":
        cases.mkdir()
        nib.save(nib.Nifti1Pair(SCAN, AFFINE), cases / "y.img")
        (cases / "y.hdr").rename(cases / "x.HDR")
        (cases / "y.img").rename(cases / "x.IMG")
    else:
        save(cases / f"x{ending}", SCAN)
    (cases / "x.Prompts.JSON").write_text(json.dumps({"objects": [{"points": [{"voxel": [6, 6, 3]}]}]}))
    assert main(["predict", checkpoint, "--cases", str(cases), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.json", "x.nii.gz"]


def test_two_images_of_one_prompted_case_are_refused_and_other_files_are_named(checkpoint: str, tmp_path: Path, capsys):
    cases = tmp_path / "cases"
    for name in ("x.NII", "y.nii.gz"):
        save(cases / name, SCAN)
    (cases / "x.prompts.json").write_text(json.dumps({"objects": [{"points": [{"voxel": [6, 6, 3]}]}]}))
    (cases / "x.zip").touch()
    words = ["predict", checkpoint, "--cases", str(cases), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "1 file left out" in printed.err and "x.zip" in printed.err
    assert "no prompt files: y.nii.gz" in printed.out
    save(cases / "x.nii.gz", SCAN)
    assert main(words) == 2
    assert "x.NII and x.nii.gz are both of case x" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_a_dataset_with_upper_case_endings_is_prepared_whole(tmp_path: Path, capsys, packed: bool, listed: bool):
    task = tmp_path / "Task09_Test"
    endings = [".nii.gz", *ENDINGS]
    for number, ending in enumerate(endings):
        save(task / "imagesTr" / f"c{number}{ending}", SCAN)
        save(task / "labelsTr" / f"c{number}{endings[-number]}", LABELS)
    (task / "imagesTr" / "notes.txt").write_text("by hand")
    if listed:  # as it was before the files were renamed
        lower = [ending.lower() for ending in endings]
        training = [
            {"image": f"./imagesTr/c{number}{lower[number]}", "label": f"./labelsTr/c{number}{lower[-number]}"}
            for number in range(len(endings))
        ]
        record = {"name": "Test", "labels": {"0": "background", "1": "organ"}, "training": training}
        (task / "dataset.json").write_text(json.dumps(record))
    source = packed_task(task) if packed else task
    assert main(["prepare", str(source), str(tmp_path / "out"), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    assert len(read_prepared(tmp_path / "out").cases) == len(endings) and "refused" not in printed.out
    assert "imagesTr: 1 file left out" in printed.err and "notes.txt" in printed.err


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_two_files_of_one_case_of_a_dataset_are_refused(tmp_path: Path, capsys, part: str):
    for name in ("imagesTr/c1.nii.gz", "labelsTr/c1.nii.gz"):
        save(tmp_path / "set" / name, SCAN if name.startswith("images") else LABELS)
    shutil.copy(tmp_path / "set" / part / "c1.nii.gz", tmp_path / "set" / part / "c1.NII.GZ")
    assert main(["prepare", str(tmp_path / "set"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{part}: c1.NII.GZ and c1.nii.gz are both of case c1" in error


def test_a_second_channel_with_an_upper_case_ending_is_refused(tmp_path: Path, capsys):
    task = tmp_path / "Dataset001_Test"
    save(task / "labelsTr" / "c1.nii.gz", LABELS)
    for name in ("c1_0000.nii.gz", "c1_0001.NII.GZ"):
        save(task / "imagesTr" / name, SCAN)
    record = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".NII.GZ"}
    (task / "dataset.json").write_text(json.dumps({**record, "numTraining": 1}))
    assert main(["prepare", str(task), str(tmp_path / "out")]) == 2
    assert "c1_0001.NII.GZ: a case has 2 channels or more" in capsys.readouterr().err


def test_cases_that_dataset_json_does_not_list_are_named(tmp_path: Path, capsys):
    task = tmp_path / "Task01_Test"
    for name in ("a", "b"):
        save(task / "imagesTr" / f"{name}.nii.gz", SCAN)
        save(task / "labelsTr" / f"{name}.nii.gz", LABELS)
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    record = {"name": "Test", "labels": {"0": "background", "1": "organ"}, "training": training}
    (task / "dataset.json").write_text(json.dumps(record))
    assert main(["prepare", str(task), str(tmp_path / "out"), "--workers", "1"]) == 0
    error = capsys.readouterr().err
    for part in ("imagesTr", "labelsTr"):
        assert f"{part}: 1 file left out (not listed in dataset.json): b.nii.gz" in error


def test_test_images_and_predictions_with_upper_case_endings_are_submitted(checkpoint: str, tmp_path: Path, capsys):
    task = tmp_path / "Task09_Test"
    save(task / "imagesTs" / "t1.NII.GZ", SCAN)
    save(task / "imagesTs" / "t2.nii.gz", SCAN)
    (task / "imagesTs" / "notes.txt").write_text("by hand")
    (task / "dataset.json").write_text(json.dumps({"name": "Test", "labels": {"1": "organ"}, "training": []}))
    save(tmp_path / "preds" / "t1.nii.gz", LABELS)
    save(tmp_path / "preds" / "t2.NII", LABELS)
    words = ["--msd-test", str(task), "--prompts-from", str(tmp_path / "preds"), "--out", str(tmp_path / "out")]
    assert main(["predict", checkpoint, *words]) == 0
    assert sorted(path.name for path in (tmp_path / "out" / "Task09_Test").iterdir()) == ["t1.nii.gz", "t2.nii.gz"]
    assert "imagesTs: 1 file left out" in capsys.readouterr().err


def test_a_segmentation_may_be_written_with_an_upper_case_ending(checkpoint: str, tmp_path: Path):
    image = save(tmp_path / "ct.nii.gz", SCAN)
    out = tmp_path / "SEG.NII.GZ"
    assert main(["predict", checkpoint, str(image), "--point", "6,6,3", "--separate", "--out", str(out)]) == 0
    assert nib.load(out).shape == SHAPE
    assert (tmp_path / "SEG_object1.NII.GZ").exists()
