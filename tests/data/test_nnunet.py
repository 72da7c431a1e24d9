"""Reading of nnU-Net's raw datasets, versions 1 and 2."""

import json
from pathlib import Path

import pytest

from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.errors import UserError
from tests.data.conftest import pack, write_volume

V2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "spleen": 1, "tumour": "2"},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def write_raw(folder: Path, record: dict, images: tuple[str, ...], labels: tuple[str, ...]) -> Path:
    for name in images:
        write_volume(folder / "imagesTr" / name)
    for name in labels:
        write_volume(folder / "labelsTr" / name, label=True)
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    images = ("case_0001_0000.nii.gz", "b_0000.nii.gz", "._b_0000.nii.gz", "b_0000.json.nii")
    return write_raw(tmp_path / "Dataset009_Spleen", V2, images, ("case_0001.nii.gz", "b.nii.gz"))


def change(raw: Path, **changes) -> Path:
    (raw / "dataset.json").write_text(json.dumps({**V2, **changes}))
    return raw


def test_a_raw_dataset_is_read_from_a_folder_and_from_an_archive(raw: Path, tmp_path: Path):
    (raw / "._dataset.json").write_bytes(b"hidden")
    for path in (raw, pack(raw, tmp_path / "x.tar", raw.name)):
        dataset = read_dataset(path)
        assert [case.id for case in dataset.cases] == ["b", "case_0001"]
        assert dataset.cases[1].image.endswith("Dataset009_Spleen/imagesTr/case_0001_0000.nii.gz")
        assert dataset.labels == {1: "spleen", 2: "tumour"}
        assert (dataset.name, dataset.modality, dataset.warnings) == ("Dataset009_Spleen", "CT", ())


def test_cases_may_be_listed_in_the_field_dataset(raw: Path):
    listing = {"first": {"images": ["./imagesTr/b_0000.nii.gz"], "label": "labelsTr/b.nii.gz"}}
    dataset = read_dataset(change(raw, dataset=listing, numTraining=1))
    assert [(case.id, case.label) for case in dataset.cases] == [("first", str(raw / "labelsTr" / "b.nii.gz"))]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"images": ["../a.nii.gz"], "label": "labelsTr/b.nii.gz"}, "'../a.nii.gz' leaves the dataset's folder"),
        ({"images": ["imagesTr/b_0000.nii.gz"], "label": "/b.nii.gz"}, "'/b.nii.gz' leaves the dataset's folder"),
        ({"images": ["a.nii", "b.nii"], "label": "c.nii"}, r"dataset\['x'\]: a case has 2 channels or more"),
        ({"images": "a.nii", "label": "c.nii"}, r"dataset\['x'\] is .*, expected 'images' and 'label'"),
        ({"images": []}, r"dataset\['x'\] is .*, expected 'images' and 'label'"),
        (["a.nii"], r"dataset\['x'\] is .*, expected 'images' and 'label'"),
        ({"images": ["a.png"], "label": "b.png"}, "lists 'a.png', expected a file ending in"),
    ],
)
def test_a_listed_case_that_cannot_be_read_is_refused(raw: Path, entry: object, words: str):
    with pytest.raises(UserError, match=words):
        read_dataset(change(raw, dataset={"x": entry}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("channel_names", {"0": "T1", "1": "T2"}, r"'channel_names' names 2 channels \('T1, T2'\), expected one"),
        (
            "labels",
            {"background": 0, "whole": [1, 2], "core": 2},
            r"label 'whole' is a region \[1, 2\], .* declare the",
        ),
        ("labels", {"background": 0, "spleen": 1, "ignore": 2}, "the label 'ignore' is not supported; relabel"),
        ("labels", {"a": 1, "b": 1}, "label 1 or the name 'b' is declared twice"),
        ("labels", {"a": -1}, "'labels' has 'a': -1, expected"),
        ("file_ending", ".png", "'file_ending' is '.png', expected one of .nii.gz, .nii, .nrrd, .mha; convert"),
        ("file_ending", ["x"], r"'file_ending' is \['x'\], expected one of"),
        ("file_ending", ".mha", "imagesTr is missing or has no .mha file"),
    ],
)
def test_unsupported_settings_are_refused_with_the_name_of_the_field(raw: Path, field: str, value: object, words: str):
    with pytest.raises(UserError, match=words):
        read_dataset(change(raw, **{field: value}))


def test_a_second_channel_that_is_not_declared_is_refused(raw: Path):
    write_volume(raw / "imagesTr" / "b_0001.nii.gz")
    with pytest.raises(UserError, match=r"b_0001.nii.gz: a case has 2 channels or more, expected one; make a dataset"):
        read_dataset(raw)


V1 = {
    "name": "Spleen",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "spleen"},
    "numTraining": 2,
    "training": [{"image": f"./imagesTr/s_{i}.nii.gz", "label": f"./labelsTr/s_{i}.nii.gz"} for i in (1, 2)],
}


def test_version_1_lists_images_without_the_channel_in_their_names(tmp_path: Path):
    images = ("s_1_0000.nii.gz", "s_2_0000.nii.gz")
    dataset = read_dataset(write_raw(tmp_path, V1, images, ("s_1.nii.gz", "s_2.nii.gz")))
    assert [case.id for case in dataset.cases] == ["s_1", "s_2"] and dataset.labels == {1: "spleen"}
    assert dataset.cases[0].image == str(tmp_path / "imagesTr" / "s_1_0000.nii.gz")
    write_volume(tmp_path / "imagesTr" / "s_2_0001.nii.gz")
    with pytest.raises(UserError, match=r"s_2_0001.nii.gz: a case has 2 channels or more"):
        read_dataset(tmp_path)


def test_a_list_with_the_channel_in_the_names_gives_the_same_ids(tmp_path: Path):
    listed = [{**entry, "image": entry["image"].replace(".nii", "_0000.nii")} for entry in V1["training"]]
    images = ("s_1_0000.nii.gz", "s_2_0000.nii.gz")
    dataset = read_dataset(write_raw(tmp_path, {**V1, "training": listed}, images, ("s_1.nii.gz", "s_2.nii.gz")))
    assert [case.id for case in dataset.cases] == ["s_1", "s_2"]


def test_numbers_of_msd_cases_are_not_mistaken_for_channels(tmp_path: Path):
    names = ("lung_0000.nii.gz", "lung_0001.nii.gz")
    listed = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    folder = write_raw(tmp_path, {**V1, "training": listed}, names, names)
    assert [case.id for case in read_dataset(folder).cases] == ["lung_0000", "lung_0001"]
    (folder / "dataset.json").unlink()
    assert [case.id for case in read_dataset(folder).cases] == ["lung_0000", "lung_0001"]
