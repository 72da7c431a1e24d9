"""Submissions: names, grid and values of the files, the origin of prompts, and what is refused."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.evaluation import submission
from sam2_3dmed_jax.inference.predictor import Result
from sam2_3dmed_jax.inference.segment import Segmentation
from sam2_3dmed_jax.phantom import write_phantom_dataset


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(new_model("nano", 64), folder)
    return str(folder)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "Task07_Pancreas", 2, 0, "pancreas", matrix=48)


@pytest.fixture
def task(phantoms: Path, tmp_path: Path) -> Path:
    """Return a task with two test images and a file of macOS; `auto` next to it has an automatic method's labels."""
    task = tmp_path / "Task07_Pancreas"
    shutil.copytree(phantoms, task)
    names = sorted(file.name for file in (task / "imagesTr").iterdir())
    for old, new in zip(names, ("pancreas_3.nii.gz", "pancreas_4.nii.gz"), strict=True):
        shutil.copy(task / "imagesTr" / old, task / "imagesTs" / new)
        (tmp_path / "auto").mkdir(exist_ok=True)
        shutil.copy(task / "labelsTr" / old, tmp_path / "auto" / new)
    description = json.loads((task / "dataset.json").read_text())
    hidden = ["./imagesTs/._pancreas_3.nii.gz"]
    description["test"] = ["./imagesTs/pancreas_3.nii.gz", "./imagesTs/pancreas_4.nii.gz", *hidden]
    (task / "dataset.json").write_text(json.dumps(description))
    return task


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list:
    """Return the prompts of each segmented case; the voxels of an object are its prompted slices."""
    received = []

    def segment(predictor, volume, prompts):
        labels = np.zeros(volume.array.shape, np.uint16)
        for own in prompts.values():
            for prompt in own:
                labels[prompt.slice, own[0].object_id] = own[0].object_id
        received.append(prompts)
        return Segmentation(labels, Result((), np.zeros((0, len(labels), 0, 0)), *[np.zeros((0, len(labels)))] * 2))

    monkeypatch.setattr(submission, "segment_objects", segment)
    return received


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["predict", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_all_test_images_are_written_with_the_names_of_the_challenge_on_their_own_grid(
    task: Path, checkpoint: str, segmented: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = ["--msd-test", str(task), "--prompts-from", str(tmp_path / "auto"), "--out", str(out)]
    assert main(["predict", checkpoint, *words]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["Task07_Pancreas", "Task07_Pancreas.manifest.json"]
    files = sorted((out / "Task07_Pancreas").iterdir())
    assert [file.name for file in files] == ["pancreas_3.nii.gz", "pancreas_4.nii.gz"]
    for file in files:
        image, labels = nib.load(task / "imagesTs" / file.name), nib.load(file)
        assert labels.shape == image.shape and np.array_equal(labels.affine, image.affine)
        assert labels.get_data_dtype() == np.uint8
    assert sorted(segmented[0]) == [(1, 2), (2,)]  # the pancreas with its tumour, then the tumour
    manifest = json.loads((out / "Task07_Pancreas.manifest.json").read_text())
    assert manifest["admissible"] is True and manifest["prompt_source"]["kind"] == "predictions"
    assert len(manifest["checkpoint"]["sha256"]) == 64 and "automatic" in manifest["reason"]
    (click, *_) = manifest["cases"]["pancreas_3"]
    assert click["object"] == 1 and click["labels"] == [1] and len(click["points"]) == 1
    assert "must not be uploaded" in capsys.readouterr().out
    (out / "Task07_Pancreas" / "pancreas_4.nii.gz").unlink()
    before = len(segmented)
    assert main(["predict", checkpoint, *words]) == 0 and len(segmented) == before + 1  # the other case is finished
    other = [*words[:4], "--protocol", "box-mid", *words[4:]]
    assert "another export (it differs in prompt_source)" in mistake(capsys, checkpoint, *other)


def test_a_submission_with_prompts_of_a_user_is_marked_inadmissible(
    task: Path, checkpoint: str, segmented: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = tmp_path / "cases.csv"
    rows = [f"Task07_Pancreas/imagesTs/pancreas_{n}.nii.gz,'{'20,20,8,1,1;22,20,8,1,2'}'" for n in (3, 4)]
    table.write_text("image,point\n" + "\n".join(rows).replace("'", '"') + "\n")
    words = [checkpoint, "--msd-test", str(task), "--cases", str(table), "--out", str(tmp_path / "out")]
    assert main(["predict", *words]) == 0
    manifest = json.loads((tmp_path / "out" / "Task07_Pancreas.manifest.json").read_text())
    assert manifest["admissible"] is False and "forbids human interaction" in manifest["reason"]
    assert [prompt["object"] for prompt in manifest["cases"]["pancreas_4"]] == [1, 2]
    assert {target: own[0].object_id for target, own in segmented[0].items()} == {(1, 2): 1, (2,): 2}
    table.write_text(table.read_text().replace("8,1,2", "8,1,3"))
    words[-1] = str(tmp_path / "new")
    assert "object 3, which is not a label of Task07_Pancreas" in mistake(capsys, *words)
    assert not (tmp_path / "new").exists()


def test_a_submission_that_is_not_possible_is_refused_in_one_sentence(
    task: Path, checkpoint: str, segmented: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    auto, out = tmp_path / "auto", tmp_path / "out"
    words = [checkpoint, "--msd-test", str(task), "--out", str(out)]
    assert "either --cases CSV|FOLDER, with prompts, or --prompts-from" in mistake(capsys, *words)
    words += ["--prompts-from", str(auto)]
    assert "oracle-clip uses the extent of the object" in mistake(capsys, *words, "--protocol", "oracle-clip")
    assert "'interactive' needs a reference" in mistake(capsys, *words, "--protocol", "interactive")
    assert "--point is for other volumes" in mistake(capsys, *words, "--point", "1,1,1")
    assert "--zoom is for other volumes" in mistake(capsys, *words, "--zoom", "auto")
    assert "--follow-up is for other volumes" in mistake(capsys, *words, "--follow-up")
    assert "--protocol: 'masks' does not exist" in mistake(capsys, *words, "--protocol", "masks")
    shutil.copy(auto / "pancreas_3.nii.gz", auto / "pancreas_5.nii.gz")
    assert "1 case beyond the test images of Task07_Pancreas: 'pancreas_5'" in mistake(capsys, *words)
    (auto / "pancreas_5.nii.gz").unlink()
    (auto / "pancreas_4.nii.gz").unlink()
    assert "lacks 1 of the 2 test images of Task07_Pancreas: 'pancreas_4'" in mistake(capsys, *words)
    (task / "imagesTs" / "pancreas_4.nii.gz").unlink()
    assert "pancreas_4.nii.gz does not exist, but is listed" in mistake(capsys, *words)
    assert not out.exists() and not segmented
    description = json.loads((task / "dataset.json").read_text())
    for listed, message in (([3], "test[0]"), (["../x.nii.gz"], "leaves the dataset"), ("x", "not a list")):
        (task / "dataset.json").write_text(json.dumps({**description, "test": listed}))
        assert message in mistake(capsys, *words)
    (task / "imagesTs" / "pancreas_3.nii.gz").unlink()
    (task / "dataset.json").write_text(json.dumps({**description, "test": []}))
    assert "no test images found" in mistake(capsys, *words)
