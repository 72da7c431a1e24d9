"""The split that settings choose, and that what is scored was not trained on."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.split_choice import SPLIT, choose_split, how_made, split_to_score
from sam2_3dmed_jax.data.split_files import keep_split, read_how
from sam2_3dmed_jax.data.splits import eighty_twenty, fold_cases
from sam2_3dmed_jax.errors import UserError

IDS = [f"case_{i:02d}" for i in range(12)]
DATA = "fingerprint of a dataset"


@pytest.fixture
def patients(tmp_path: Path) -> str:
    """Two scans a patient."""
    file = tmp_path / "patients.csv"
    file.write_text("case,patient\n" + "".join(f"{name},P{i // 2}\n" for i, name in enumerate(IDS)))
    return str(file)


@pytest.fixture
def splits(tmp_path: Path) -> str:
    """Fold 1 leaves some cases out altogether, as nnU-Net allows."""
    file = tmp_path / "splits_final.json"
    folds = [{"train": IDS[:8], "val": IDS[8:]}, {"train": IDS[:3], "val": IDS[5:6]}]
    file.write_text(json.dumps(folds))
    return str(file)


def test_defaults_are_nnunets_first_fold_and_train_on_all_of_its_training_cases():
    split = choose_split(IDS, DataConfig())
    assert (list(split.train), list(split.test)) == fold_cases(IDS, 0) and split.val == ()


def test_80_20_is_by_its_seed_and_has_no_further_fold():
    data = DataConfig(split="80/20", split_seed=5)
    assert list(choose_split(IDS, data).test) == eighty_twenty(IDS, 5)[1]
    with pytest.raises(UserError, match=r"data\.fold: 80/20 has no fold 1"):
        choose_split(IDS, replace(data, fold=1))


def test_a_file_of_splits_is_taken_as_it_stands_and_its_fold_must_exist(splits):
    data = DataConfig(splits=splits, fold=1)
    split = choose_split(IDS, data)
    assert (split.train, split.val, split.test) == (tuple(IDS[:3]), (), (IDS[5],))
    with pytest.raises(UserError, match=r"has no fold 2; choose data\.fold from 0 to 1"):
        choose_split(IDS, replace(data, fold=2))
    with pytest.raises(UserError, match=r"data\.splits: .*names 'case_11', which the dataset lacks"):
        choose_split(IDS[:-1], replace(data, fold=0))
    with pytest.raises(UserError, match="are two splits"):
        choose_split(IDS, DataConfig(splits=splits, split="80/20"))
    with pytest.raises(UserError, match="choose from kfold, 80/20"):
        choose_split(IDS, DataConfig(split="60/40"))  # type: ignore[arg-type]


def test_inner_cases_come_out_of_the_training_cases_of_every_kind_of_split_and_stay_with_their_patients(
    splits, patients
):
    for data in (DataConfig(), DataConfig(split="80/20"), DataConfig(splits=splits), DataConfig(patients=patients)):
        whole, split = (choose_split(IDS, replace(data, inner_fraction=share)) for share in (0.0, 0.25))
        assert split.test == whole.test and split.val
        assert sorted(split.train + split.val) == list(whole.train)
    sides = [{IDS.index(name) // 2 for name in part} for part in (split.train, split.val, split.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_a_file_of_splits_that_tears_a_patient_apart_is_refused(splits, patients):
    assert choose_split(IDS, DataConfig(splits=splits, patients=patients)).test == tuple(IDS[8:])
    torn = Path(splits)
    torn.write_text(json.dumps([{"train": IDS[:7], "val": IDS[7:]}]))
    with pytest.raises(UserError, match=r"fold 0 has cases of patient 'P3' on two sides"):
        choose_split(IDS, DataConfig(splits=splits, patients=patients))


def test_a_table_of_patients_that_does_not_fit_is_told_with_the_field(patients):
    with pytest.raises(UserError, match=r"data\.patients: .* has no row for 'x'"):
        choose_split([*IDS, "x"], DataConfig(patients=patients))


def test_how_a_split_was_made_names_its_files_with_their_sums(splits, patients, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = how_made(DataConfig(path="data", splits="splits_final.json", patients=patients, fold=1), DATA)
    assert (
        how["fingerprint"] == DATA
        and how["splits"] == splits
        and how["data"] == str(tmp_path / "data")
        and how["fold"] == 1
    )
    assert how["patients_sha256"] == hashlib.sha256(Path(patients).read_bytes()).hexdigest()
    assert how["random_state"] == 12345


def run_of(tmp_path: Path, data: DataConfig) -> str:
    """A checkpoint's folder, beside the split of its run."""
    keep_split(tmp_path / "run" / SPLIT, choose_split(IDS, data), how_made(data, DATA))
    return str(tmp_path / "run" / "final")


def test_a_checkpoint_is_scored_on_what_its_run_held_out_without_saying_so_again(tmp_path, patients, splits):
    for number, data in enumerate(
        [
            DataConfig(fold=2, folds=3),
            DataConfig(split="80/20", split_seed=4),
            DataConfig(fold=1, patients=patients, inner_fraction=0.2),
            DataConfig(fold=1, splits=splits),
        ]
    ):
        data = replace(data, path=str(tmp_path / "data"))
        checkpoint = run_of(tmp_path / str(number), data)
        assert split_to_score(IDS, DATA, checkpoint, {}) == choose_split(IDS, data)
        record = str(tmp_path / str(number) / "run" / SPLIT)
        assert split_to_score(IDS, DATA, checkpoint, {"splits": record}) == choose_split(IDS, data)


def test_cases_that_a_checkpoint_was_trained_on_are_not_scored(tmp_path):
    data = DataConfig(path=str(tmp_path / "data"), fold=1)
    checkpoint = run_of(tmp_path, data)
    with pytest.raises(UserError, match=r"trained on 3 of the 3 cases to score \('case_00', 'case_03', 'case_08'\)"):
        split_to_score(IDS, DATA, checkpoint, {"fold": 0})
    with pytest.raises(UserError, match="was trained on"):
        split_to_score(IDS, DATA, checkpoint, {"split": "kfold"})  # nothing of the run's: its fold 0
    # Another dataset may have cases of the same names.
    elsewhere = split_to_score(IDS, "of another dataset", checkpoint, {})
    assert elsewhere == choose_split(IDS, DataConfig())


def test_inner_cases_are_not_scored_as_held_out_either(tmp_path):
    data = DataConfig(path=str(tmp_path / "data"), inner_fraction=0.5)
    checkpoint = run_of(tmp_path, data)
    inner = choose_split(IDS, data).val
    file = tmp_path / "inner.json"
    file.write_text(json.dumps([{"train": list(choose_split(IDS, data).test), "val": list(inner)}]))
    with pytest.raises(UserError, match=f"trained on {len(inner)} of the {len(inner)} cases"):
        split_to_score(IDS, DATA, checkpoint, {"splits": str(file)})


def test_a_checkpoint_without_a_run_is_scored_by_the_flags(tmp_path):
    assert split_to_score(IDS, DATA, str(tmp_path / "alone"), {"fold": 3}) == choose_split(IDS, DataConfig(fold=3))


def test_a_runs_file_that_was_edited_is_refused_by_the_field(tmp_path):
    data = DataConfig(path=str(tmp_path / "data"))
    checkpoint = run_of(tmp_path, data)
    file = tmp_path / "run" / SPLIT
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "how": {**read_how(file), "folds": "five"}}))
    with pytest.raises(UserError, match=r"how\.folds is 'five'"):
        split_to_score(IDS, DATA, checkpoint, {})
