"""Reading of datasets: MSD in folders and archives, folders without `dataset.json`, and refused descriptions."""

import json
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.data.datasets import read_dataset, require_folder
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.io import open_labels, read_volume
from tests.data.conftest import IDS, pack, write_volume


def edit(task: Path, **changes) -> Path:
    """Change fields of dataset.json; None removes a field."""
    file = task / "dataset.json"
    record = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
    return task


def plain(folder: Path, images: tuple[str, ...], labels: tuple[str, ...]) -> Path:
    for name in images:
        write_volume(folder / "imagesTr" / name)
    for name in labels:
        write_volume(folder / "labelsTr" / name, label=True)
    return folder


@pytest.mark.parametrize("root", [None, "Task07_Pancreas", ".", "./Task07_Pancreas", "data/Task07_Pancreas"])
def test_an_msd_task_is_read_from_its_folder_and_from_its_archive(task: Path, tmp_path: Path, root: str | None):
    path = task if root is None else pack(task, tmp_path / "downloads" / "Task07_Pancreas.tar", root)
    dataset = read_dataset(path)
    assert dataset.name == "Pancreas" and dataset.modality == "CT"
    assert dataset.labels == {1: "pancreas", 2: "cancer"}
    assert tuple(case.id for case in dataset.cases) == IDS  # sorted; neither test images nor hidden files
    assert dataset.record["relase"] == "1.0 04/05/2018" and len(dataset.record["test"]) == 1
    assert dataset.warnings == ()
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    if root is None:
        assert dataset.archive is None and require_folder(dataset) is dataset
        voxels = np.asarray(nib.load(dataset.cases[1].image).dataobj)
        np.testing.assert_array_equal(voxels, np.random.default_rng(1).integers(0, 400, (6, 5, 4)))
        assert dataset.cases[0].label == str(task / "labelsTr" / "pancreas_001.nii.gz")
    else:
        assert dataset.archive == str(path) and len(dataset.members) == 2 * len(IDS)
        with path.open("rb") as file:
            for case in dataset.cases:
                for name in (case.image, case.label):
                    file.seek(dataset.members[name].offset)
                    original = task / name.split("/")[-2] / name.split("/")[-1]
                    assert file.read(dataset.members[name].size) == original.read_bytes()


def test_a_wrong_number_of_training_cases_is_a_warning(task: Path):
    dataset = read_dataset(edit(task, numTraining=281))
    assert len(dataset.cases) == 3
    (warning,) = dataset.warnings
    assert "dataset.json: 'numTraining' is 281, but 3 cases were found" in warning


def test_a_task_without_a_name_has_the_name_of_its_folder(task: Path, tmp_path: Path):
    edit(task, name=None)
    assert read_dataset(task).name == "Task07_Pancreas"
    assert read_dataset(pack(task, tmp_path / "a.tar", "Task07_Pancreas")).name == "Task07_Pancreas"
    assert read_dataset(pack(task, tmp_path / "b.tar", ".")).name == "b"
    assert read_dataset(edit(task, name={"not": "text"})).name == "Task07_Pancreas"


def test_symbolic_links_on_disk_are_followed(task: Path, tmp_path: Path):
    (task / "imagesTr").rename(tmp_path / "elsewhere")
    (task / "imagesTr").symlink_to(tmp_path / "elsewhere")
    assert len(read_dataset(task).cases) == 3


def test_a_folder_without_dataset_json_is_paired_by_file_names_and_declares_no_labels(tmp_path: Path):
    names = ("b.nii.gz", "a 1.nii", "Müller.nii.gz")
    dataset = read_dataset(plain(tmp_path / "mine", (*names, "._b.nii.gz", "notes.txt.nii.gz"), names))
    assert [case.id for case in dataset.cases] == ["Müller", "a 1", "b"]
    assert (dataset.name, dataset.labels, dataset.record, dataset.modality) == ("mine", {}, {}, None)
    assert len(dataset.warnings) == 1 and "first 'notes.txt.nii.gz'" in dataset.warnings[0]


def test_image_and_label_may_have_different_formats_and_image_names_may_end_with_a_channel(tmp_path: Path):
    folder = plain(tmp_path / "mine", ("a_0000.nii.gz", "b.nii"), ("a.nii.gz", "b.nii.gz"))
    dataset = read_dataset(folder)
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert dataset.cases[0].image == str(folder / "imagesTr" / "a_0000.nii.gz")


def test_images_without_a_label_and_labels_without_an_image_are_skipped_with_a_warning(tmp_path: Path):
    dataset = read_dataset(plain(tmp_path, ("a.nii", "b.nii", "c.nii"), ("a.nii", "d.nii")))
    assert [case.id for case in dataset.cases] == ["a"]
    assert f"{tmp_path}/imagesTr: 2 files without label are not used, first 'b.nii'" in dataset.warnings[0]
    assert f"{tmp_path}/labelsTr: 1 files without image are not used, first 'd.nii'" in dataset.warnings[1]


def test_a_folder_without_dataset_json_is_read_from_an_archive(tmp_path: Path):
    folder = plain(tmp_path / "mine", ("a.nii", "b.nii"), ("a.nii", "b.nii"))
    (folder / "._dataset.json").write_bytes(b"hidden")
    dataset = read_dataset(pack(folder, tmp_path / "mine.tar", "mine"))
    assert [case.image for case in dataset.cases] == ["mine/imagesTr/a.nii", "mine/imagesTr/b.nii"]
    assert (dataset.name, dataset.labels) == ("mine", {})


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        ((), (), "has no dataset.json, and no images in imagesTr; give the folder"),
        (("a.nii",), (), "labelsTr is missing or has no .nii.gz or .nii or .nrrd or .mha file"),
        (("a.nii",), ("b.nii",), r"no image in imagesTr \(1, first 'a.nii'\) has a label of the same name"),
        (("a.nii", "a.nii.gz"), ("a.nii",), "a.nii and a.nii.gz are both of case a; keep one"),
        (("a.nii", "a_0000.nii"), ("a.nii",), "two cases are named 'a'"),
        (("a_0000.nii", "a_0001.nii"), ("a.nii",), "a_0001.nii: a case has 2 channels or more, expected one"),
        (("a_0003.nii",), ("a.nii",), "a_0003.nii: a case has 4 channels or more, expected one"),
        (("-rf.nii",), ("-rf.nii",), "the case '-rf' cannot name a file, .* rename its image and label"),
    ],
)
def test_a_folder_whose_files_cannot_be_paired_is_refused(
    tmp_path: Path, images: tuple[str, ...], labels: tuple[str, ...], words: str
):
    with pytest.raises(UserError, match=words) as error:
        read_dataset(plain(tmp_path, images, labels))
    assert str(tmp_path) in str(error.value)


def test_a_path_that_is_not_a_dataset_is_refused_with_a_hint(task: Path, tmp_path: Path):
    with pytest.raises(UserError, match="absent does not exist; give the folder"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(UserError, match=f"expected its folder; give {task}"):
        read_dataset(task / "dataset.json")
    with pytest.raises(UserError, match="is one image, expected a dataset"):
        read_dataset(task / "imagesTr" / "pancreas_001.nii.gz")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("labels", None, "'labels' is missing or not an object; declare them"),
        ("labels", ["spleen"], "'labels' is missing or not an object"),
        ("labels", {}, "'labels' declares only background; add the labels to segment"),
        ("labels", {"0": "background"}, "'labels' declares only background; add the labels to segment"),
        ("labels", {"1": 2.5}, "'labels' has '1': 2.5, expected"),
        ("labels", {"0": "background", "1": None}, "'labels' has '1': None, expected"),
        ("labels", {"spleen": 1, "2": "tumour"}, "'labels' has '2': 'tumour', expected"),
        ("labels", {"x": True}, "'labels' has 'x': True, expected"),
        ("labels", {"-1": "a"}, "'labels' has '-1': 'a', expected"),
        ("labels", {"300": "a"}, "label 'a' has the value 300, expected 1 to 255; renumber it"),
        ("labels", {"1": "a", "2": "a"}, "label 2 or the name 'a' is declared twice; keep one"),
        ("labels", {"1": "a", "01": "b"}, "label 1 or the name 'b' is declared twice; keep one"),
        ("labels", {"1": "a\u001b[2J"}, r"label 1 has the name 'a\\x1b\[2J', expected printable text"),
        ("modality", {"0": "T2", "1": "ADC"}, r"'modality' names 2 channels \('T2, ADC'\), expected one"),
        ("modality", {"0": 5}, r"'modality' is \{'0': 5\}, expected names"),
        ("training", None, "has neither 'training' as in MSD, nor 'file_ending' as in nnU-Net; add one of them"),
        ("training", "all", "'training' is not a list"),
        ("training", [], "lists no training cases"),
        ("training", [{"image": "./imagesTr/._x.nii.gz", "label": "y.nii.gz"}], "lists no training cases"),
        ("training", ["./imagesTr/x.nii.gz"], r"training\[0\] is './imagesTr/x.nii.gz', expected 'image' and 'label'"),
    ],
)
def test_a_wrong_description_is_refused_with_the_name_of_the_field(task: Path, field: str, value: object, words: str):
    with pytest.raises(UserError, match=words) as error:
        read_dataset(edit(task, **{field: value}))
    assert str(task / "dataset.json") in str(error.value)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("../evil.nii.gz", "'../evil.nii.gz' leaves the dataset's folder; use paths such as ./imagesTr/x.nii.gz"),
        ("./imagesTr/../../evil.nii.gz", "leaves the dataset's folder"),
        ("/etc/evil.nii.gz", "'/etc/evil.nii.gz' leaves the dataset's folder"),
        ("./imagesTr/absent.nii.gz", "imagesTr/absent.nii.gz does not exist, but is listed; unpack the whole"),
        ("./imagesTr", "lists 'imagesTr', expected a file ending in .nii.gz"),
        (
            "./imagesTr/x.png",
            "lists 'imagesTr/x.png', expected a file ending in .nii.gz, .nii, .nrrd, .mha; convert",
        ),
        ("", "image is '', expected a path"),
        (7, "image is 7, expected a path"),
        (["./a.nii.gz", "./b.nii.gz"], "a case has 2 channels or more, expected one"),
        ("./imagesTr/x\u0000.nii.gz", r"image is './imagesTr/x\\x00.nii.gz', expected a path"),
        (f"./imagesTr/{'x' * 300}.nii.gz", "does not exist, but is listed"),
    ],
)
@pytest.mark.parametrize("field", ["image", "label"])
def test_a_listed_path_that_is_missing_or_leaves_the_dataset_is_refused(
    task: Path, field: str, image: object, words: str
):
    other = {"image": "label", "label": "image"}[field]
    entry = {field: image, other: f"./{other}sTr/pancreas_001.nii.gz"}
    with pytest.raises(UserError, match=words.replace("image is", f"{field} is")) as error:
        read_dataset(edit(task, training=[entry]))
    str(error.value).encode()  # can be printed


@pytest.mark.parametrize("part", ["image", "label"])
def test_a_listed_pipe_is_refused_and_not_waited_for(task: Path, part: str):
    file = task / f"{part}sTr" / "pancreas_001.nii.gz"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"pancreas_001\.nii\.gz"):
        for case in read_dataset(task).cases:
            read_volume(case.image)
            open_labels(case.label)


def test_two_cases_with_the_same_id_are_refused(task: Path):
    entry = {"image": "./imagesTr/pancreas_001.nii.gz", "label": "./labelsTr/pancreas_001.nii.gz"}
    with pytest.raises(UserError, match=r"two cases are named 'pancreas_001' .* rename or remove one"):
        read_dataset(edit(task, training=[entry, entry]))


@pytest.mark.parametrize("name", ["a\nb", "a/b", "..", ".hidden", "a:b", "x" * 201])
def test_an_id_that_is_not_a_safe_file_name_is_refused(task: Path, name: str):
    entry = {"images": ["imagesTr/pancreas_001.nii.gz"], "label": "labelsTr/pancreas_001.nii.gz"}
    with pytest.raises(UserError, match="cannot name a file"):
        read_dataset(edit(task, dataset={name: entry}))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b"[" * 200_000, b'{"labels": ' + b"9" * 5000 + b"}"])
def test_a_description_that_is_not_json_is_refused(task: Path, text: bytes):
    (task / "dataset.json").write_bytes(text)
    with pytest.raises(UserError, match=r"dataset.json is not JSON .* fix it, or unpack the dataset again"):
        read_dataset(task)


def test_a_description_that_is_not_an_object_or_too_large_is_refused(task: Path):
    file = task / "dataset.json"
    text = file.read_bytes()
    file.write_bytes(b"\xef\xbb\xbf" + text)
    assert len(read_dataset(task).cases) == 3
    file.write_bytes(b"[1, 2]")
    with pytest.raises(UserError, match=r"dataset.json does not describe a dataset, expected a JSON object"):
        read_dataset(task)
    file.write_bytes(text + b" " * 2**24)
    with pytest.raises(UserError, match=r"dataset.json has 16.0 MiB, expected at most 16 MiB"):
        read_dataset(task)
