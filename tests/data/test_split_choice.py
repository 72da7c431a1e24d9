"""Choice of the split from the settings."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam2_3dmed_jax.config import DataConfig, SplitConfig
from sam2_3dmed_jax.data.split_choice import choose_split, split_description
from sam2_3dmed_jax.data.splits import eighty_twenty, fold_cases
from sam2_3dmed_jax.errors import UserError
from tests.helpers.recorded_cases import SPLIT_IDS as IDS

DATA = "fingerprint of a dataset"


def test_the_default_is_nnunets_first_fold_without_inner_validation():
    split = choose_split(IDS, DataConfig())
    assert (list(split.train), list(split.test)) == fold_cases(IDS, 0) and split.val == ()


def test_80_20_depends_on_its_seed_and_has_one_fold():
    data = DataConfig(split=SplitConfig(method="80/20", seed=5))
    assert list(choose_split(IDS, data).test) == eighty_twenty(IDS, 5)[1]
    with pytest.raises(UserError, match=r"data\.fold: 80/20 has no fold 1"):
        choose_split(IDS, replace(data, fold=1))


def test_a_split_file_is_used_unchanged_and_its_fold_must_exist(splits):
    data = DataConfig(split=SplitConfig(file=splits), fold=1)
    split = choose_split(IDS, data)
    assert (split.train, split.val, split.test) == (tuple(IDS[:3]), (), (IDS[5],))
    with pytest.raises(UserError, match=r"has no fold 2; choose data\.fold from 0 to 1"):
        choose_split(IDS, replace(data, fold=2))
    with pytest.raises(UserError, match=r"data\.split\.file: .*contains 'case_11', which the dataset lacks"):
        choose_split(IDS[:-1], replace(data, fold=0))
    with pytest.raises(UserError, match="are two splits"):
        choose_split(IDS, DataConfig(split=SplitConfig(file=splits, method="80/20")))
    with pytest.raises(UserError, match="choose from kfold, 80/20"):
        choose_split(IDS, DataConfig(split=SplitConfig(method="60/40")))  # type: ignore[arg-type]


def test_inner_validation_is_drawn_from_the_training_cases_of_every_kind_of_split(splits, patients):
    for data in (
        DataConfig(),
        DataConfig(split=SplitConfig(method="80/20")),
        DataConfig(split=SplitConfig(file=splits)),
        DataConfig(split=SplitConfig(patients=patients)),
    ):
        whole, split = (
            choose_split(IDS, replace(data, split=replace(data.split, inner_fraction=share))) for share in (0.0, 0.25)
        )
        assert split.test == whole.test and split.val
        assert sorted(split.train + split.val) == list(whole.train)
    sides = [{IDS.index(name) // 2 for name in part} for part in (split.train, split.val, split.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_a_split_file_that_divides_the_cases_of_a_patient_is_refused(splits, patients):
    assert choose_split(IDS, DataConfig(split=SplitConfig(file=splits, patients=patients))).test == tuple(IDS[8:])
    torn = Path(splits)
    torn.write_text(json.dumps([{"train": IDS[:7], "val": IDS[7:]}]))
    with pytest.raises(UserError, match=r"fold 0 has cases of patient 'P3' on two sides"):
        choose_split(IDS, DataConfig(split=SplitConfig(file=splits, patients=patients)))


def test_a_wrong_table_of_patients_is_refused_with_the_name_of_the_field(patients):
    with pytest.raises(UserError, match=r"data\.split\.patients: .* has no row for 'x'"):
        choose_split([*IDS, "x"], DataConfig(split=SplitConfig(patients=patients)))


def test_the_description_of_a_split_contains_its_files_and_their_sha256(splits, patients, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = split_description(
        DataConfig(path="data", fold=1, split=SplitConfig(file="splits_final.json", patients=patients)), DATA
    )
    assert (
        how["fingerprint"] == DATA
        and how["splits"] == splits
        and how["data"] == str(tmp_path / "data")
        and how["fold"] == 1
    )
    assert how["patients_sha256"] == hashlib.sha256(Path(patients).read_bytes()).hexdigest()
    assert how["random_state"] == 12345
