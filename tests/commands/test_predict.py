"""`sam2-3dmed predict` from files to files: all kinds of prompts, one file per object, pictures, and many cases."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference import compiled_programs
from sam2_3dmed_jax.inference.predict_case import object_files
from sam2_3dmed_jax.prompts.case_table import read_cases
from sam2_3dmed_jax.prompts.flags import PromptFlags, gather_prompts
from sam2_3dmed_jax.volume import dicom_seg
from sam2_3dmed_jax.volume.geometry import to_canonical
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_nifti
from tests.helpers.dicom_files import write_series
from tests.helpers.segment_files import (
    rectangle,
    write_segments_by_highdicom,
    write_slicer_segments,
    write_structures,
)

AFFINE = np.diag([-0.8, -0.8, 3.0, 1.0])
SHAPE = (24, 20, 5)


def scan(path: Path, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).normal(40, 100, SHAPE)
    write_nifti(path, noise.astype(np.int16), AFFINE)
    return path


def labels(path: Path, *blocks: tuple[int, tuple[slice, slice, slice]]) -> Path:
    painted = np.zeros(SHAPE, np.uint8)
    for value, block in blocks:
        painted[block] = value
    write_nifti(path, painted, AFFINE)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(new_model("nano", 64, with_3dmed=True), folder)
    return str(folder)


def predict(*words: str | Path) -> int:
    return main(["predict", *map(str, words)])


def mistake(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Return the `error: ` line of a command that must end with exit code 2."""
    assert predict(*words) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ")
    return last


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_all_kinds_of_prompts_and_all_outputs_work_in_one_command(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image, out = scan(tmp_path / "ct.nii.gz"), tmp_path / "out"
    strokes = labels(tmp_path / "strokes.nii.gz", (2, np.s_[4:12, 9, 1]), (9, np.s_[4:12, 16, 1]))
    reference = labels(tmp_path / "reference.nii.gz", (1, np.s_[4:12, 4:12, 1:4]))
    node = {"type": "Fiducial", "coordinateSystem": "LPS", "name": "big cyst"}
    node["controlPoints"] = [{"position": [8, 8, 6]}, {"label": "-", "position": [1, 1, 6]}]
    (tmp_path / "F.mrk.json").write_text(json.dumps({"markups": [node]}))
    (tmp_path / "own.json").write_text(json.dumps({"objects": [{"id": 1, "points": [{"voxel": [7, 7, 2]}]}]}))
    words = ["--point", "5,5,1,1,2", "--point-mm", "-4,-4,3,0,2", "--box", "3,3,1,9,9,1,2"]
    words += ["--scribble", strokes, "--scribble-outside", "9"]
    words += ["--prompts", tmp_path / "F.mrk.json", "--prompts", tmp_path / "own.json"]
    words += ["--reference", reference, "--overlay", out / "sheet.png", "--planes", out / "planes.png", "--separate"]
    assert predict(checkpoint, image, "--out", out / "seg.nii.gz", *words) == 0
    apart = {1: "big_cyst", 2: "object2"}
    files = [f"seg_{name}.nii.gz" for name in apart.values()]
    assert names(out) == sorted(["planes.png", "seg.json", "seg.nii.gz", "sheet.png", *files])
    whole = stored(out / "seg.nii.gz")
    masks = {value: stored(out / f"seg_{name}.nii.gz") for value, name in apart.items()}
    assert (whole > 0).any() and all(set(np.unique(mask)) <= {0, 1} for mask in masks.values())
    # Where objects overlap, the label map contains one of them, and their own files contain each.
    assert np.array_equal(whole > 0, np.any([mask > 0 for mask in masks.values()], axis=0))
    assert all(mask[whole == value].all() for value, mask in masks.items())
    assert "object 1 (big cyst): " in capsys.readouterr().out


def test_the_record_describes_the_written_masks_and_its_prompts_give_them_again(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image, out = scan(tmp_path / "ct.nii.gz"), tmp_path / "seg.nii.gz"
    assert predict(checkpoint, image, "--out", out, "--point", "5,5,1", "--point", "20,15,3,0", "--separate") == 0
    record = json.loads((tmp_path / "seg.json").read_text())
    labels, (entry,) = stored(out), record["objects"]
    assert entry["volume_ml"] == pytest.approx((labels == 1).sum() * 0.8 * 0.8 * 3.0 / 1000)
    assert [click["inside"] for click in entry["clicks"]] == [bool(labels[5, 5, 1]), bool(labels[20, 15, 3])]
    assert entry["prompted_slices"] == [1, 3] and len(entry["predicted_iou"]) == len(entry["object_score"]) == 5
    assert record["model"]["checkpoint"] == checkpoint and record["image"] == str(image)
    err = capsys.readouterr().err
    assert f"warning: {checkpoint} was never trained" in err
    assert all(f"warning: {warning}" in err for warning in record["warnings"])

    words = ["--prompts", tmp_path / "seg.json", "--out", tmp_path / "again.nii.gz", "--separate"]
    assert predict(checkpoint, image, *words, "--keep-component", "largest") == 0
    again = stored(tmp_path / "again.nii.gz")
    components, count = ndimage.label(labels, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    assert count > 1 and np.array_equal(again > 0, components == 1 + sizes.argmax())
    assert np.array_equal(stored(tmp_path / "again_object1.nii.gz") > 0, again > 0)
    assert json.loads((tmp_path / "again.json").read_text())["keep_component"] == "largest"


def test_a_record_replaces_no_other_file(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image, prompts = scan(tmp_path / "ct.nii.gz"), tmp_path / "seg.json"
    prompts.write_text(json.dumps({"objects": [{"points": [{"voxel": [5, 5, 1]}]}]}))
    error = mistake(capsys, checkpoint, image, "--prompts", prompts, "--out", tmp_path / "seg.nii.gz")
    assert "seg.json is --prompts itself, which would be replaced" in error
    assert names(tmp_path) == ["ct.nii.gz", "seg.json"] and "objects" in json.loads(prompts.read_text())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--point-mm", "-400,0,0"], "--point-mm: voxel x = 500 is outside"),
        (["--point-mm", "1,2"], "--point-mm: '1,2' is not x,y,z"),
        (["--point", "nan,1,1"], "--point: voxel x = nan is outside"),
        (["--scribble", "absent.nii.gz"], "absent.nii.gz does not exist"),
        (["--scribble-outside", "3"], "--scribble-outside: the scribble is missing"),
        (["--prompts", "absent.json"], "absent.json does not exist"),
        (["--point", "1,1,1", "--reference", "r.nii.gz"], "--reference is drawn in pictures; give --overlay"),
        (
            ["--point", "1,1,1", "--overlay", "a.png", "--planes", "a.png"],
            "--planes: a.png is the same file as --overlay",
        ),
        (["--point", "1,1,1", "--planes", "a.png", "--reference", "absent.nii.gz"], "absent.nii.gz does not exist"),
        (["--point", "1,1,1", "--window", "lung"], "--window is for pictures; give --overlay"),
        (["--point", "1,1,1", "--overlay", "a.png", "--window", "lungs"], "--window is 'lungs', expected LEVEL,WIDTH"),
        (["--point", "1,1,1,0", "--keep-component", "clicked"], "--keep-component clicked: object 1 has no click"),
        (
            ["--point", "1,1,1", "--zoom", "near"],
            "--zoom is 'near', expected auto, off, or the side of the region in mm",
        ),
        (["--cases", "cases.csv"], "IMAGE is for a single volume; with --cases, give it in the table"),
    ],
)
def test_invalid_flags_are_reported_in_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
):
    image = scan(tmp_path / "ct.nii.gz")
    assert named in mistake(capsys, "no checkpoint", image, "--out", tmp_path / "out" / "seg.nii.gz", *words)
    assert names(tmp_path) == ["ct.nii.gz"]


def test_a_missing_image_and_prompts_in_addition_to_cases_are_reported_by_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert "IMAGE is missing; give IMAGE, or --cases" in mistake(capsys, "ckpt", "--out", f"{out}.nii", "--point", "1")
    cases = ["ckpt", "--cases", "cases.csv", "--out"]
    assert "--point-mm is for a single volume" in mistake(capsys, *cases, out, "--point-mm", "-1,2,3")
    assert "is not a folder; with --cases, give a folder" in mistake(capsys, *cases, f"{out}.nii.gz")
    assert "cases.csv does not exist" in mistake(capsys, *cases, out)


def test_a_batch_lists_its_failures_and_a_second_run_repeats_only_these(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for seed, name in enumerate("ab"):
        scan(tmp_path / f"{name}.nii.gz", seed)
    table, out = tmp_path / "cases.csv", tmp_path / "out"
    two = '"5,5,1;9,9,2,1,2"'  # objects
    rows = ["image,name,point", f"a.nii.gz,,{two}"]
    bad = [f"absent.nii.gz,,{two}", 'a.nii.gz,far,"5,5,99"', "a.nii.gz,none,"]
    table.write_text("\n".join([*rows, *bad, f"b.nii.gz,c,{two}"]))
    words = [checkpoint, "--cases", table, "--out", out, "--planes", tmp_path / "pictures"]
    assert "--cases: 3 of 5 failed" in mistake(capsys, *words)
    assert names(out) == ["a.json", "a.nii.gz", "c.json", "c.nii.gz"] and names(tmp_path / "pictures") == [
        "a_planes.png",
        "c_planes.png",
    ]

    compiled = compiled_programs.propagate_block._cache_size()
    (out / "c.nii.gz").unlink()
    before = (out / "a.nii.gz").stat().st_mtime_ns
    line = mistake(capsys, *words)
    assert "--cases: 3 of 5 failed" in line
    assert compiled_programs.propagate_block._cache_size() == compiled
    assert (out / "a.nii.gz").stat().st_mtime_ns == before

    table.write_text("\n".join(rows))
    assert predict(*words, "--statistics", tmp_path / "objects.csv") == 0
    assert "a: skipped" in capsys.readouterr().out
    rows_of_a = list(csv.DictReader((tmp_path / "objects.csv").open()))
    assert [(row["case"], row["object"]) for row in rows_of_a] == [("a", "1"), ("a", "2")]


def test_failures_of_a_batch_are_printed_with_their_reasons(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "cases"
    folder.mkdir()
    for name in ("a", "bare"):
        scan(folder / f"{name}.nii.gz")
    entries = [{"points": [{"voxel": voxel}]} for voxel in ([5, 5, 1], [9, 9, 2])]
    (folder / "a.prompts.json").write_text(json.dumps({"objects": entries}))
    (folder / "gone.mrk.json").write_text('{"markups": []}')
    assert predict(checkpoint, "--cases", folder, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "failed: gone: " in printed.out and "gone.nii.gz does not exist" in printed.out
    assert "left out, because they have no prompt files: bare.nii.gz" in printed.out
    assert printed.err.strip().splitlines()[-1].startswith("error: --cases: 1 of 2 failed")
    assert names(tmp_path / "out") == ["a.json", "a.nii.gz"]


def test_a_batch_does_not_mistake_an_image_for_its_segmentation(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = scan(tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "cases.csv").write_text('image,point\na.nii.gz,"5,5,1"')
    assert predict(checkpoint, "--cases", tmp_path / "cases.csv", "--out", tmp_path) == 2
    assert "is the image itself" in capsys.readouterr().err
    assert (tmp_path / "a.nii.gz").read_bytes() == before and names(tmp_path) == ["a.nii.gz", "cases.csv"]


def test_two_objects_with_the_same_file_name_are_refused(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"two objects would be written to .*seg_object2\.nii\.gz; give them different names"
    ):
        object_files(tmp_path / "seg.nii.gz", [1, 2], {1: "object2"})


def test_a_dicom_series_becomes_a_label_map_and_a_dicom_segmentation(checkpoint: str, tmp_path: Path, realdata: Path):
    series = realdata / "dicom" / "ct-3slice"
    words = [checkpoint, series, "--box", "100,200,0,300,400,2", "--mask", realdata / "dicom" / "liver_seg.nrrd"]
    for kept in ("seg.nii.gz", "seg.dcm"):
        assert predict(*words[:-2], "--out", tmp_path / kept) == 0
    whole = nib.load(tmp_path / "seg.nii.gz")
    assert whole.shape == (512, 512, 3)
    np.testing.assert_allclose(nib.affines.voxel_sizes(whole.affine), (0.810547, 0.810547, 1.0), atol=1e-4)
    assert (tmp_path / "seg.dcm").read_bytes()[128:132] == b"DICM"
    assert predict(checkpoint, series, *words[-2:], "--out", tmp_path / "drawn.nii.gz") == 0
    assert stored(tmp_path / "drawn.nii.gz").any()


def test_a_structure_set_has_the_voxels_of_the_label_map_and_statistics_have_its_objects(
    checkpoint: str, tmp_path: Path
):
    series = write_series(tmp_path / "a")
    words = [checkpoint, series, "--box", "1,1,0,5,4,3,4", "--classes", "1=spleen,4=left kidney"]
    for name in ("seg.nii.gz", "seg.rtstruct.dcm"):
        assert predict(*words, "--out", tmp_path / name, "--statistics", tmp_path / "objects.csv") == 0
    volume = read_volume(series)
    found = read_labels(tmp_path / "seg.nii.gz", volume)
    assert found.any()
    np.testing.assert_array_equal(read_labels(tmp_path / "seg.rtstruct.dcm", volume), found)
    (roi,) = pydicom.dcmread(tmp_path / "seg.rtstruct.dcm").StructureSetROISequence
    assert (roi.ROINumber, roi.ROIName) == (4, "left kidney")
    (row,) = csv.DictReader((tmp_path / "objects.csv").open())
    assert (row["case"], row["object"], row["name"], row["code"]) == ("a", "4", "left kidney", "64033007")
    assert float(row["volume_ml"]) == pytest.approx((found == 4).sum() * 0.8 * 0.7 * 2.5 / 1000, rel=1e-4)
    assert float(row["mean"]) == pytest.approx(volume.array[found == 4].mean(), rel=1e-4)


def test_wrong_classes_and_statistics_are_refused_before_the_image_is_read(checkpoint: str, tmp_path: Path, capsys):
    (tmp_path / "other.csv").write_text("x,y")
    words = [checkpoint, "no image", "--point", "1,1,1", "--out", tmp_path / "seg.nii.gz"]
    for given in ("1", "1=spleen,1=liver", "1+2=both", "70000=spleen", "1=a/b", "1=spleen:red", "0=air"):
        assert "--classes: " in mistake(capsys, *words, "--classes", given)
    assert "other.csv is not a table of statistics" in mistake(capsys, *words, "--statistics", tmp_path / "other.csv")


def test_one_volume_of_a_4d_file_is_selected_by_its_index(checkpoint: str, tmp_path: Path, capsys, realdata: Path):
    image = realdata / "headers" / "nb_functional_4d_int16_slope.nii"
    words = [checkpoint, image, "--point", "5,5,1", "--out", tmp_path / "seg.nii.gz"]
    assert "(predict: --volume)" in mistake(capsys, *words)
    assert "an index from 0 to" in mistake(capsys, *words, "--volume", "1000")
    assert predict(*words, "--volume", "1") == 0
    assert stored(tmp_path / "seg.nii.gz").shape == nib.load(image).shape[:3]


def test_a_dicom_segmentation_of_an_image_that_is_not_dicom_is_refused(checkpoint: str, tmp_path: Path, capsys):
    image = scan(tmp_path / "ct.nii.gz")
    error = mistake(capsys, checkpoint, image, "--point", "5,5,1", "--out", tmp_path / "seg.dcm")
    assert "needs a DICOM series as its source" in error
    assert names(tmp_path) == ["ct.nii.gz"]


def test_a_series_that_dicom_seg_cannot_refer_to_is_refused_before_the_model_is_loaded(tmp_path: Path, capsys):
    series = write_series(tmp_path / "a", each={1: {"FrameOfReferenceUID": "1.2.3"}})
    words = ["no checkpoint", series, "--point", "3,3,1", "--out", tmp_path / "seg.dcm"]
    assert "different values of FrameOfReferenceUID" in mistake(capsys, *words)
    assert names(tmp_path) == ["a"]


def test_masks_that_fail_as_dicom_seg_after_the_model_are_saved_as_nifti(
    checkpoint: str, tmp_path: Path, capsys, monkeypatch
):
    series = write_series(tmp_path / "a")
    words = [checkpoint, series, "--box", "1,1,0,5,4,3", "--separate", "--planes", tmp_path / "planes.png", "--out"]
    assert predict(*words, tmp_path / "right.nii.gz") == 0
    (tmp_path / "seg.nii.gz").write_bytes(b"another result")
    (tmp_path / "planes.png").unlink()
    write = dicom_seg._segmentation
    calls: list[object] = []

    def fail_after_preparation(*arguments: object) -> object:
        calls.append(arguments)
        return write(*arguments) if len(calls) == 1 else {}["a new demand"]

    monkeypatch.setattr(dicom_seg, "_segmentation", fail_after_preparation)
    error = mistake(capsys, *words, tmp_path / "seg.dcm")
    assert "the masks are saved as NIfTI" in error and "seg_2.nii.gz and 1 files of single objects" in error
    assert "because" in error and "a new demand" in error
    for kept, right in (("seg_2", "right"), ("seg_object1", "right_object1")):
        np.testing.assert_array_equal(stored(tmp_path / f"{kept}.nii.gz"), stored(tmp_path / f"{right}.nii.gz"))
    assert (tmp_path / "seg.nii.gz").read_bytes() == b"another result"
    others = ["a", "planes.png", "right.json", "right.nii.gz", "right_object1.nii.gz", "seg.nii.gz"]
    assert names(tmp_path) == [*others, "seg_2.json", "seg_2.nii.gz", "seg_object1.nii.gz"]


def mask_of_object(volume, layers, object_id: int) -> np.ndarray:
    drawn = [prompt for prompt in layers if prompt.object_id == object_id]
    mask = np.zeros(volume.array.shape, bool)
    for prompt in drawn:
        mask[prompt.slice] = prompt.mask
    return mask


@pytest.mark.parametrize("kind", ["segmentation", "structures", "slicer"])
def test_overlapping_segments_are_mask_prompts_by_flag_table_and_value(tmp_path: Path, kind: str):
    series = write_series(tmp_path / "ct", array=np.zeros((6, 10, 12), np.int16))
    volume = read_volume(series)
    organ, lesion = np.zeros((2, 12, 10, 6), bool)
    organ[1:9, 2:8, 1:4], lesion[3:5, 3:6, 2:4] = True, True
    if kind == "segmentation":
        path = write_segments_by_highdicom(tmp_path / "drawn.dcm", series, [organ, lesion])
    elif kind == "structures":
        corners = {1: ((0.5, 1.5), (8.5, 7.5), range(1, 4)), 2: ((2.5, 2.5), (4.5, 5.5), range(2, 4))}
        drawn = {n: [rectangle(volume.grid.affine, low, high, k) for k in ks] for n, (low, high, ks) in corners.items()}
        path = write_structures(tmp_path / "drawn.dcm", drawn)
    else:
        layers = np.stack([organ, lesion]).astype(np.uint8)
        path = write_slicer_segments(
            tmp_path / "drawn.seg.nrrd", layers, volume.grid.affine, [(0, 1, "organ"), (1, 1, "lesion")]
        )
    expected = [to_canonical(mask, volume.grid) for mask in (organ, lesion)]
    prompts = gather_prompts(PromptFlags(mask=str(path)), volume).prompts
    for object_id, mask in enumerate(expected, 1):
        np.testing.assert_array_equal(mask_of_object(volume, prompts, object_id), mask)
    (tmp_path / "p.json").write_text(json.dumps({"objects": [{"id": 5, "mask": {"file": path.name, "value": 1}}]}))
    prompts = gather_prompts(PromptFlags(prompts=str(tmp_path / "p.json")), volume).prompts
    np.testing.assert_array_equal(mask_of_object(volume, prompts, 5), expected[0])
    (tmp_path / "cases.csv").write_text(f"image,mask\nct,{path.name}\n")
    (case,) = read_cases(tmp_path / "cases.csv")
    prompts = gather_prompts(case.prompts, volume).prompts
    np.testing.assert_array_equal(mask_of_object(volume, prompts, 2), expected[1])


def test_six_axis_orders_of_one_brain_get_the_same_segmentation_each_on_its_own_grid(
    checkpoint: str, tmp_path: Path, realdata: Path
):
    files = sorted((realdata / "orientations").glob("*.nii.gz"))
    assert len(files) == 6
    canonical = []
    for image in files:
        out = tmp_path / image.name
        assert predict(checkpoint, image, "--point-mm", "20,-20,10", "--out", out) == 0
        source, segmented = nib.load(image), nib.load(out)
        assert segmented.shape == source.shape
        np.testing.assert_array_equal(segmented.affine, source.affine)
        canonical.append(np.asarray(nib.as_closest_canonical(segmented).dataobj))
    assert 0 < canonical[0].mean() < 1
    for other in canonical[1:]:
        np.testing.assert_array_equal(other, canonical[0])
