"""Split files of nnU-Net and of training runs, and tables of patients: reading, writing and refusals."""

import json
from pathlib import Path

import pytest

from sam2_3dmed_jax.data.split_files import (
    read_patients,
    read_split_description,
    read_splits,
    write_nnunet_splits,
    write_run_split,
)
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError

SPLIT = Split(("a", "b"), ("c",), ("d", "e"))


def written(tmp_path: Path, text: str, name: str = "splits_final.json") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_the_val_cases_of_nnunet_are_test_cases_and_there_is_no_inner_validation(tmp_path):
    file = written(tmp_path, json.dumps([{"train": ["b", "a"], "val": ["c"]}, {"train": ["c", "a"], "val": ["b"]}]))
    assert read_splits(file) == [Split(("a", "b"), (), ("c",)), Split(("a", "c"), (), ("b",))]


def test_a_file_for_nnunet_trains_on_the_inner_validation_cases_too(tmp_path):
    file = tmp_path / "prepared" / "splits_final.json"
    write_nnunet_splits(file, [SPLIT, Split(("d",), (), ("a",))])
    assert json.loads(file.read_text()) == [
        {"train": ["a", "b", "c"], "val": ["d", "e"]},
        {"train": ["d"], "val": ["a"]},
    ]
    assert read_splits(file)[0].test == SPLIT.test
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_split_of_a_run_is_stored_with_its_description_and_read_back(tmp_path):
    file = tmp_path / "run" / "split.json"
    write_run_split(file, SPLIT, {"split": "kfold", "fold": 2})
    before = file.read_bytes()
    write_run_split(file, SPLIT, {"split": "a run that resumes"})  # the same cases: nothing to do
    assert file.read_bytes() == before
    assert read_splits(file) == [SPLIT] and read_split_description(file) == {"split": "kfold", "fold": 2}


@pytest.mark.parametrize("other", [Split(("a",), ("b", "c"), ("d", "e")), Split(("a", "b", "d"), ("c",), ("e",))])
def test_a_run_whose_split_changed_is_not_resumed(tmp_path, other):
    file = tmp_path / "split.json"
    write_run_split(file, SPLIT, {})
    with pytest.raises(UserError, match="has another split"):
        write_run_split(file, other, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\xff\xfe", "is not JSON"),
        ("3", "is 3; give a list"),
        ("null", "is None; give a list"),
        ("[]", r"is \[\]; give a list"),
        ("[[]]", r"fold 0 is \[\]; give an object with train and val"),
        ('[{"train": ["a"]}]', "fold 0 has no 'val'"),
        ('[{"train": ["a"], "val": "b"}]', "'val' holds 'b'; give a list"),
        ('[{"train": ["a"], "val": {"b": 1}}]', r"'val' holds \{'b': 1\}; give a list"),
        ('[{"train": ["a"], "val": ""}]', "'val' holds ''; give a list"),
        ('[{"train": ["a", 3], "val": ["b"]}]', "'train' holds 3; give a list"),
        ('[{"train": ["a", null], "val": ["b"]}]', "'train' holds None; give a list"),
        ('[{"train": ["a", NaN], "val": ["b"]}]', r"is not JSON \(NaN is not a number\); give a split"),
        ('[{"train": [], "val": ["b"]}]', "'train' is empty"),
        ('[{"train": ["a"], "val": []}]', "'val' is empty"),
        ('[{"train": ["a", "b"], "val": ["b"]}]', "'b' is in 'train' and in 'val'"),
        ('[{"train": ["a", "a"], "val": ["b"]}]', "'a' is twice in 'train'"),
        ('[{"train": ["a"], "val": ["b"]}, 7]', "fold 1 is 7"),
        ('{"train": ["a"], "val": ["b"]}', "has no 'test'"),
        ('{"train": ["a"], "val": ["b"], "test": ["a"]}', "'a' is in 'train' and in 'test'"),
    ],
)
def test_a_file_without_valid_splits_is_refused_with_the_position(tmp_path, text, words):
    file = tmp_path / "splits_final.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words) as caught:
        read_splits(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_missing_file_and_a_file_without_description_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist; give a split file"):
        read_splits(tmp_path / "absent.json")
    with pytest.raises(UserError, match="is a folder, expected a file; give a split file"):
        read_splits(tmp_path)
    for text in ("[]", "{}", '{"how": 3}'):
        with pytest.raises(UserError, match="has no description of its split"):
            read_split_description(written(tmp_path, text))


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_nnunet_splits(tmp_path / "file" / "splits_final.json", [SPLIT])


def test_a_table_of_patients_may_have_other_columns_and_cases_and_excels_byte_order_mark(tmp_path):
    file = tmp_path / "patients.csv"
    file.write_bytes(b'\xef\xbb\xbfpatient, age, case\r\nP1, 70, a\r\n"P, 2", 71, b\r\nP1, 70, c\r\nP3,,elsewhere\r\n')
    patients = read_patients(file, ["a", "b", "c"])
    assert [patients[case] for case in "abc"] == ["P1", "P, 2", "P1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has the columns none"),
        ("id,patient\na,1\n", "has the columns 'id', 'patient'"),
        ("case;patient\na;1\n", "has the columns 'case;patient'"),
        ("case,patient\na,1\nb,\n", "line 3: the patient is missing"),
        ("case,patient\na,1\n,2\n", "line 3: the case is missing"),
        ("case,patient\na,1\nb\n", "line 3: the patient is missing"),
        ("case,patient\na,1\nb,2\na,2\n", "line 4: 'a' has the patient '2', and above '1'"),
        ("case,patient\na,1\n", "has no row for 'b'"),
        ("case,patient\nz,1\n", "has no row for 'a', 'b'"),
        ("case,patient\na,\xff\n", "is not a CSV table in UTF-8"),
    ],
)
def test_a_wrong_table_of_patients_is_refused(tmp_path, text, words):
    file = tmp_path / "patients.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words) as caught:
        read_patients(file, ["a", "b"])
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
