"""`predict --prompts-from`: objects of a label map are segmented again, in one image, a table, and from Python.

All tests have two objects with one prompted slice each, so that they share their compiled programs.
"""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from sam2_3dmed_jax import Scan, save_model, segment
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.volume.io import write_nifti
from tests.helpers.dicom_files import write_series
from tests.helpers.scans import small_model
from tests.helpers.segment_files import write_segments_by_highdicom

AFFINE = np.diag([-0.8, -0.8, 3.0, 1.0])
SHAPE = (24, 20, 6)
NAMES = {2: "liver", 7: "spleen"}

pytestmark = pytest.mark.filterwarnings("ignore::sam2_3dmed_jax.errors.FileWarning")  # masks of random weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(small_model(), folder)
    return str(folder)


def organs() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:12, 2:12, 0:5] = 2
    labels[14:20, 2:8, 2:4] = 7
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scan, the label map of another method, its names, and an earlier scan's labels on a grid of their own."""
    noise = np.random.default_rng(0).normal(40, 60, SHAPE) + 60.0 * (organs() > 0)
    write_nifti(tmp_path / "ct.nii.gz", noise.astype(np.int16), AFFINE)
    write_nifti(tmp_path / "organs.nii.gz", organs(), AFFINE)
    earlier = AFFINE.copy()
    earlier[:3, :3] /= 2
    earlier[:3, 3] = (0.2, 0.2, -0.75)
    write_nifti(tmp_path / "earlier.nii.gz", organs().repeat(2, 0).repeat(2, 1).repeat(2, 2), earlier)
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ignore": 10}}
    dataset["labels"] |= {name: value for value, name in NAMES.items()}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    return tmp_path


def predict(*words: str | Path) -> int:
    return main(["predict", *map(str, words)])


def mistake(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Return the `error: ` line of a command that must end with exit code 2."""
    assert predict(*words) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ") and len(last) <= 300
    return last


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_the_masks_have_the_labels_and_names_and_the_record_has_their_origin(checkpoint: str, folder: Path, capsys):
    out = folder / "seg.nii.gz"
    words = ["--prompts-from", folder / "organs.nii.gz", "--names", folder / "dataset.json", "--overlay"]
    assert predict(checkpoint, folder / "ct.nii.gz", "--out", out, *words, folder / "overlay.png") == 0
    assert set(np.unique(stored(out))) <= {0, 2, 7} and stored(out).shape == SHAPE
    record = json.loads((folder / "seg.json").read_text())
    assert {entry["id"]: entry["name"] for entry in record["objects"]} == NAMES
    assert [entry["prompted_slices"] for entry in record["objects"]] == [[0], [2]]
    assert record["objects"][1]["prompts_from"] == {
        "file": str(folder / "organs.nii.gz"),
        "sha256": sha256_of_file(folder / "organs.nii.gz"),
        "labels": [7],
        "protocol": "one-click",
        "follow_up": False,
    }
    assert "object 7 (spleen): " in capsys.readouterr().out and (folder / "overlay.png").stat().st_size > 10_000

    again = folder / "again.nii.gz"  # the record has the clicks, as prompts of the user
    assert predict(checkpoint, folder / "ct.nii.gz", "--out", again, "--prompts", folder / "seg.json") == 0
    assert np.array_equal(stored(again), stored(out))
    assert json.loads((folder / "again.json").read_text())["objects"][1]["prompts_from"] is None


def test_slices_of_an_earlier_scan_are_kept_as_masks_of_the_new_one(checkpoint: str, folder: Path):
    out = folder / "seg.nii.gz"
    words = ["--prompts-from", folder / "earlier.nii.gz", "--follow-up", "--protocol", "masks", "--mask-slices", "1"]
    words += ["--names", folder / "dataset.json", "--separate"]
    assert predict(checkpoint, folder / "ct.nii.gz", "--out", out, *words) == 0
    objects = json.loads((folder / "seg.json").read_text())["objects"]
    assert [(entry["id"], entry["prompted_slices"]) for entry in objects] == [(2, [2]), (7, [3])]
    assert all(entry["prompts_from"]["follow_up"] for entry in objects)
    for name, value, index in (("liver", 2, 2), ("spleen", 7, 3)):
        mask, label = stored(folder / f"seg_{name}.nii.gz")[:, :, index] > 0, organs()[:, :, index] == value
        # The model has a quarter of its resolution for masks, 16 x 16 pixels on 24 x 20 voxels.
        assert 2 * (mask & label).sum() / (mask.sum() + label.sum()) > 0.85


def test_python_gives_the_voxels_of_the_command_and_a_scan_takes_further_prompts(checkpoint: str, folder: Path):
    image, organs_file = folder / "ct.nii.gz", folder / "organs.nii.gz"
    words = ["--prompts-from", organs_file, "--targets", "7,2=big"]
    assert predict(checkpoint, image, "--out", folder / "seg.nii.gz", *words) == 0
    given = segment(image, prompts_from=nib.load(organs_file), targets="7,2=big", model=checkpoint, progress=False)
    assert np.array_equal(np.asarray(given.dataobj), stored(folder / "seg.nii.gz"))

    scan = Scan(image, checkpoint)
    scan.prompt_from(organs_file, names=folder / "dataset.json", targets="spleen")
    assert scan.objects[7].name == "spleen" and len(scan.prompts) == 1
    with pytest.raises(UserError, match="object 7 has prompts of the label map and others"):
        scan.prompt_from(organs_file, targets="7")
    with pytest.raises(UserError, match="or give follow_up for labels of an earlier scan"):
        scan.prompt_from(folder / "earlier.nii.gz")
    scan.click((16, 5, 3), object="spleen")
    assert [prompt.origin and prompt.origin.path for prompt in scan.prompts] == [str(organs_file), None]
    assert scan.undo() and scan.undo() and not scan.prompts
    with pytest.raises(UserError, match="names: another object is 'spleen' already"):
        scan.prompt_from(organs_file, names={2: "spleen"}, targets="2")
    assert not scan.prompts


def test_a_table_of_cases_has_a_column_for_label_maps_and_folders_of_masks(checkpoint: str, folder: Path):
    for name, value in {"liver": 2, "spleen": 7}.items():
        write_nifti(folder / "masks" / f"{name}.nii.gz", (organs() == value).astype(np.uint8), AFFINE)
    rows = [("image", "name", "prompts_from"), ("ct.nii.gz", "map", "organs.nii.gz"), ("ct.nii.gz", "folder", "masks")]
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    out = folder / "out"
    assert (
        predict(checkpoint, "--cases", folder / "cases.csv", "--out", out, "--protocol", "masks", "--mask-slices", "1")
        == 0
    )
    objects = {name: json.loads((out / f"{name}.json").read_text())["objects"] for name in ("map", "folder")}
    assert [entry["id"] for entry in objects["map"]] == [2, 7]
    assert [(entry["id"], entry["name"]) for entry in objects["folder"]] == [(1, "liver"), (2, "spleen")]
    assert objects["folder"][0]["prompts_from"]["protocol"] == "masks"


def test_names_of_a_dicom_segmentation_are_the_names_of_the_new_one(checkpoint: str, tmp_path: Path):
    series = write_series(tmp_path / "series", array=np.random.default_rng(0).integers(0, 99, (5, 20, 24), np.int16))
    masks = np.zeros((2, 24, 20, 5), bool)
    masks[0, 4:12, 4:12, 1:4], masks[1, 10:18, 10:18, 2] = True, True
    given = write_segments_by_highdicom(tmp_path / "given.dcm", series, list(masks))
    assert predict(checkpoint, series, "--out", tmp_path / "seg.dcm", "--prompts-from", given) == 0
    labels = [segment.SegmentLabel for segment in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence]
    assert labels == ["segment 1", "segment 2"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--prompts-from", "absent.nii.gz"], "absent.nii.gz does not exist"),
        (["--prompts-from", "organs.nii.gz", "--targets", "heart"], "--targets: 'heart' is neither a label value nor"),
        (["--prompts-from", "organs.nii.gz", "--targets", "3"], "has no voxel of '3'; choose from 2, 7"),
        (["--prompts-from", "organs.nii.gz", "--point", "5,5,1,1,7"], "--prompts-from: object 7 has prompts of the"),
        (["--prompts-from", "organs.nii.gz", "--protocol", "oracle-clip"], "--protocol: 'oracle-clip' does not exist"),
        (["--prompts-from", "organs.nii.gz", "--names", "organs.nii.gz"], "organs.nii.gz is not JSON"),
        (["--prompts-from", "organs.nii.gz", "--names", "absent.json"], "absent.json does not exist; give a JSON file"),
        (["--prompts-from", "organs.nii.gz", "--mask-slices", "2"], "--mask-slices is for the protocol masks"),
        (["--prompts-from", "earlier.nii.gz"], "or give --follow-up for labels of an earlier scan"),
        (["--point", "5,5,1", "--targets", "2"], "--targets is for prompts of a label map; give --prompts-from"),
        (["--point", "5,5,1", "--follow-up"], "--follow-up is for prompts of a label map"),
    ],
)
def test_invalid_flags_are_reported_in_one_line_and_write_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], named: str
):
    monkeypatch.chdir(folder)
    assert named in mistake(capsys, "no checkpoint", "ct.nii.gz", "--out", "out/seg.nii.gz", *words)
    assert not (folder / "out").exists()
