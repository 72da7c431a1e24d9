"""Datasets found: MSD's quirks in a folder and in its archive, folders without a description, and strangers' JSON."""

import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.data.datasets import on_disk, read_dataset
from sam2_3dmed_jax.errors import UserError
from tests.data.conftest import IDS, pack, write_volume


def edit(task: Path, **changes) -> Path:
    """Change fields of dataset.json; None takes one out."""
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
def test_a_task_is_read_with_all_of_msds_quirks_from_its_folder_and_from_its_archive(
    task: Path, tmp_path: Path, root: str | None
):
    path = task if root is None else pack(task, tmp_path / "downloads" / "Task07_Pancreas.tar", root)
    dataset = read_dataset(path)
    assert dataset.name == "Pancreas" and dataset.modality == "CT"
    assert dataset.labels == {1: "pancreas", 2: "cancer"}
    assert tuple(case.id for case in dataset.cases) == IDS  # sorted; neither test images nor hidden files
    assert dataset.record["relase"] == "1.0 04/05/2018" and len(dataset.record["test"]) == 1
    assert dataset.warnings == ()
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    if root is None:
        assert dataset.archive is None and on_disk(dataset) is dataset
        assert nib.load(dataset.cases[0].image).shape == (6, 5, 4)
        assert dataset.cases[0].label == str(task / "labelsTr" / "pancreas_001.nii.gz")
    else:
        assert dataset.archive == str(path) and len(dataset.members) == 2 * len(IDS)
        with path.open("rb") as file:
            for case in dataset.cases:
                for name in (case.image, case.label):
                    file.seek(dataset.members[name].offset)
                    original = task / name.split("/")[-2] / name.split("/")[-1]
                    assert file.read(dataset.members[name].size) == original.read_bytes()


def test_a_number_of_training_cases_that_disagrees_is_a_warning(task: Path):
    dataset = read_dataset(edit(task, numTraining=281))
    assert len(dataset.cases) == 3
    (warning,) = dataset.warnings
    assert "dataset.json: 'numTraining' is 281, but 3 cases were found" in warning


def test_a_task_without_a_name_is_called_like_its_folder(task: Path, tmp_path: Path):
    edit(task, name=None)
    assert read_dataset(task).name == "Task07_Pancreas"
    assert read_dataset(pack(task, tmp_path / "a.tar", "Task07_Pancreas")).name == "Task07_Pancreas"
    assert read_dataset(pack(task, tmp_path / "b.tar", ".")).name == "b"
    assert read_dataset(edit(task, name={"not": "text"})).name == "Task07_Pancreas"


def test_linked_images_are_followed_on_disk(task: Path, tmp_path: Path):
    (task / "imagesTr").rename(tmp_path / "elsewhere")
    (task / "imagesTr").symlink_to(tmp_path / "elsewhere")
    assert len(read_dataset(task).cases) == 3


def test_a_folder_without_a_description_is_paired_by_file_names_and_declares_no_labels(tmp_path: Path):
    names = ("b.nii.gz", "a 1.nii", "Müller.nii.gz")
    dataset = read_dataset(plain(tmp_path / "mine", (*names, "._b.nii.gz", "notes.txt.nii.gz"), names))
    assert [case.id for case in dataset.cases] == ["Müller", "a 1", "b"]
    assert (dataset.name, dataset.labels, dataset.record, dataset.modality) == ("mine", {}, {}, None)
    assert len(dataset.warnings) == 1 and "first 'notes.txt.nii.gz'" in dataset.warnings[0]


def test_an_image_and_a_label_may_be_of_different_formats_and_channels_in_names_are_understood(tmp_path: Path):
    folder = plain(tmp_path / "mine", ("a_0000.nii.gz", "b.nii"), ("a.nii.gz", "b.nii.gz"))
    dataset = read_dataset(folder)
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert dataset.cases[0].image == str(folder / "imagesTr" / "a_0000.nii.gz")


def test_images_without_a_label_and_labels_without_an_image_are_left_out_and_named(tmp_path: Path):
    dataset = read_dataset(plain(tmp_path, ("a.nii", "b.nii", "c.nii"), ("a.nii", "d.nii")))
    assert [case.id for case in dataset.cases] == ["a"]
    assert f"{tmp_path}/imagesTr: 2 without label left out, first 'b.nii'" in dataset.warnings[0]
    assert f"{tmp_path}/labelsTr: 1 without image left out, first 'd.nii'" in dataset.warnings[1]


def test_a_plain_folder_in_an_archive_is_read_too(tmp_path: Path):
    folder = plain(tmp_path / "mine", ("a.nii", "b.nii"), ("a.nii", "b.nii"))
    (folder / "._dataset.json").write_bytes(b"hidden")
    dataset = read_dataset(pack(folder, tmp_path / "mine.tar", "mine"))
    assert [case.image for case in dataset.cases] == ["mine/imagesTr/a.nii", "mine/imagesTr/b.nii"]
    assert (dataset.name, dataset.labels) == ("mine", {})


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        ((), (), "it has no dataset.json, and no images in imagesTr; give the folder"),
        (("a.nii",), (), "labelsTr is missing or holds no .nii.gz or .nii or .nrrd or .mha file"),
        (("a.nii",), ("b.nii",), r"no image in imagesTr \(1, first 'a.nii'\) has a label of its name"),
        (("a.nii", "a.nii.gz"), ("a.nii",), "holds both 'a.nii' and 'a.nii.gz'; remove one"),
        (("a.nii", "a_0000.nii"), ("a.nii",), "two cases are called 'a'"),
        (("a_0000.nii", "a_0001.nii"), ("a.nii",), "a_0001.nii: a case has 2 channels or more, expected one"),
        (("a_0003.nii",), ("a.nii",), "a_0003.nii: a case has 4 channels or more, expected one"),
        (("-rf.nii",), ("-rf.nii",), "the case '-rf' cannot name a file, .* rename its image and label"),
    ],
)
def test_a_folder_that_cannot_be_paired_is_refused_by_name(
    tmp_path: Path, images: tuple[str, ...], labels: tuple[str, ...], words: str
):
    with pytest.raises(UserError, match=words) as error:
        read_dataset(plain(tmp_path, images, labels))
    assert str(tmp_path) in str(error.value)


def test_what_is_no_dataset_is_refused_with_what_would_be_one(task: Path, tmp_path: Path):
    with pytest.raises(UserError, match="absent: there is no such dataset; give the folder"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(UserError, match=f"expected its folder; give {task}"):
        read_dataset(task / "dataset.json")
    with pytest.raises(UserError, match="is one image, expected a dataset"):
        read_dataset(task / "imagesTr" / "pancreas_001.nii.gz")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("labels", None, "'labels' is missing or no object; declare them"),
        ("labels", ["spleen"], "'labels' is missing or no object"),
        ("labels", {}, "nothing but background, so there is nothing to segment"),
        ("labels", {"0": "background"}, "nothing but background, so there is nothing to segment"),
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
        ("modality", {"0": 5}, r"'modality' holds \{'0': 5\}, expected names"),
        ("training", None, "'training' is missing, nor nnU-Net's, as 'file_ending' is; add either"),
        ("training", "all", "'training' is no list"),
        ("training", [], "it lists no training cases"),
        ("training", [{"image": "./imagesTr/._x.nii.gz", "label": "y.nii.gz"}], "it lists no training cases"),
        ("training", ["./imagesTr/x.nii.gz"], r"training\[0\] is './imagesTr/x.nii.gz', expected 'image' and 'label'"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused_by_its_field(task: Path, field: str, value: object, words: str):
    with pytest.raises(UserError, match=words) as error:
        read_dataset(edit(task, **{field: value}))
    assert str(task / "dataset.json") in str(error.value)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("../evil.nii.gz", "'../evil.nii.gz' leaves the dataset's folder; use paths such as ./imagesTr/x.nii.gz"),
        ("./imagesTr/../../evil.nii.gz", "leaves the dataset's folder"),
        ("/etc/evil.nii.gz", "'/etc/evil.nii.gz' leaves the dataset's folder"),
        ("./imagesTr/absent.nii.gz", "imagesTr/absent.nii.gz is not there, though it is listed; unpack the whole"),
        ("./imagesTr", "it lists 'imagesTr', expected a file ending in .nii.gz"),
        (
            "./imagesTr/x.png",
            "it lists 'imagesTr/x.png', expected a file ending in .nii.gz, .nii, .nrrd, .mha; convert",
        ),
        ("", "image is '', expected a path"),
        (7, "image is 7, expected a path"),
        (["./a.nii.gz", "./b.nii.gz"], "a case has 2 channels or more, expected one"),
        ("./imagesTr/\ud800.nii.gz", r"image is './imagesTr/\\ud800.nii.gz', expected a path"),
        ("./imagesTr/x\u0000.nii.gz", r"image is './imagesTr/x\\x00.nii.gz', expected a path"),
        (f"./imagesTr/{'x' * 300}.nii.gz", "is not there, though it is listed"),
    ],
)
@pytest.mark.parametrize("field", ["image", "label"])
def test_a_listed_path_that_leads_astray_is_refused_by_name(task: Path, field: str, image: object, words: str):
    other = {"image": "label", "label": "image"}[field]
    entry = {field: image, other: f"./{other}sTr/pancreas_001.nii.gz"}
    with pytest.raises(UserError, match=words.replace("image is", f"{field} is")) as error:
        read_dataset(edit(task, training=[entry]))
    str(error.value).encode()  # can be printed


def test_two_cases_of_one_id_are_refused(task: Path):
    entry = {"image": "./imagesTr/pancreas_001.nii.gz", "label": "./labelsTr/pancreas_001.nii.gz"}
    with pytest.raises(UserError, match=r"two cases are called 'pancreas_001' .* rename or remove one"):
        read_dataset(edit(task, training=[entry, entry]))


@pytest.mark.parametrize("name", ["a\nb", "a/b", "..", ".hidden", "a:b", "x" * 201])
def test_an_id_that_cannot_name_a_shard_is_refused(task: Path, name: str):
    entry = {"images": ["imagesTr/pancreas_001.nii.gz"], "label": "labelsTr/pancreas_001.nii.gz"}
    with pytest.raises(UserError, match="cannot name a file"):
        read_dataset(edit(task, dataset={name: entry}))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b"[" * 200_000, b'{"labels": ' + b"9" * 5000 + b"}"])
def test_a_description_that_is_no_json_is_refused(task: Path, text: bytes):
    (task / "dataset.json").write_bytes(text)
    with pytest.raises(UserError, match=r"dataset.json is no JSON .* mend it, or unpack the dataset again"):
        read_dataset(task)


def test_a_description_that_is_no_object_or_of_unlikely_size_is_refused_and_a_byte_order_mark_is_not(task: Path):
    file = task / "dataset.json"
    text = file.read_bytes()
    file.write_bytes(b"\xef\xbb\xbf" + text)
    assert len(read_dataset(task).cases) == 3
    file.write_bytes(b"[1, 2]")
    with pytest.raises(UserError, match=r"dataset.json is no description of a dataset, expected a JSON object"):
        read_dataset(task)
    file.write_bytes(text + b" " * 2**24)
    with pytest.raises(UserError, match=r"dataset.json is larger than 16777216 bytes"):
        read_dataset(task)


def test_the_voxels_of_a_found_case_are_those_that_were_written(task: Path):
    case = read_dataset(task).cases[1]
    expected = np.random.default_rng(1).integers(0, 400, (6, 5, 4))
    np.testing.assert_array_equal(np.asarray(nib.load(case.image).dataobj), expected)
