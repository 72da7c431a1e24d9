"""Splits: folds equal nnU-Net's, 80/20 equals scikit-learn's, and the cases of a patient stay together."""

import pytest

from sam2_3dmed_jax.data.splits import eighty_twenty, fold_cases, inner_split
from sam2_3dmed_jax.errors import UserError

IDS = [f"case_{i:02d}" for i in range(12)]
# From scikit-learn 1.9.1: the test indices of KFold(5, shuffle=True, random_state=12345).split(range(12)).
SKLEARN = [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]
# The same for range(41), the number of cases of MSD's spleen task.
SKLEARN_SPLEEN = [
    [0, 2, 3, 5, 19, 21, 25, 28, 32],
    [4, 8, 12, 15, 20, 30, 33, 35],
    [6, 7, 10, 11, 13, 17, 24, 26],
    [9, 14, 16, 18, 22, 23, 27, 31],
    [1, 29, 34, 36, 37, 38, 39, 40],
]
# From the same version: train_test_split(range(n), test_size=0.2, random_state=seed)[1], sorted, by (n, seed).
SKLEARN_80_20 = {
    (12, 0): [4, 6, 11],
    (12, 1): [2, 3, 4],
    (41, 0): [4, 10, 11, 25, 27, 29, 31, 35, 36],
    (7, 3): [4, 6],
}
# Patients with two scans each, in another order than their cases.
PATIENTS = {name: f"patient {9 - i // 2}" for i, name in enumerate(IDS)}
ALONE = {name: f"patient {99 - i}" for i, name in enumerate(IDS)}


@pytest.mark.parametrize("fold", range(5))
def test_a_fold_holds_out_the_cases_that_nnunet_holds_out(fold):
    assert fold_cases(IDS, fold)[1] == [IDS[i] for i in sorted(SKLEARN[fold])]
    spleen = [f"spleen_{i:03d}" for i in range(41)]
    assert fold_cases(spleen, fold)[1] == [spleen[i] for i in SKLEARN_SPLEEN[fold]]


def test_each_case_is_held_out_once_and_never_trained_on_in_its_fold():
    held = []
    for fold in range(5):
        training, test = fold_cases(IDS, fold)
        assert not set(training) & set(test) and sorted(training + test) == IDS
        held += test
    assert sorted(held) == IDS


def test_splits_do_not_depend_on_the_order_of_the_ids():
    assert fold_cases(IDS, 1) == fold_cases(IDS[::-1], 1)
    assert eighty_twenty(IDS, 1) == eighty_twenty(IDS[::-1], 1)
    assert inner_split(IDS, 0.3, PATIENTS) == inner_split(IDS[::-1], 0.3, PATIENTS)


@pytest.mark.parametrize(
    ("fold", "folds", "words"),
    [
        (5, 5, "data.fold"),
        (-1, 5, "data.fold"),
        (0, 13, "data.split.folds"),
        (0, 1, "data.split.folds"),
        (0, 0, "data.split.folds"),
    ],
)
def test_folds_that_do_not_exist_are_refused(fold, folds, words):
    with pytest.raises(UserError, match=words):
        fold_cases(IDS, fold, folds)


@pytest.mark.parametrize(("count", "seed"), SKLEARN_80_20)
def test_80_20_holds_out_the_cases_of_scikit_learn(count, seed):
    ids = [f"case_{i:02d}" for i in range(count)]
    training, test = eighty_twenty(ids, seed)
    assert test == [ids[i] for i in SKLEARN_80_20[count, seed]]
    assert sorted(training + test) == ids


@pytest.mark.parametrize(("ids", "seed", "words"), [(IDS[:1], 0, "two cases"), (IDS, -1, "seed"), (IDS, 2**32, "seed")])
def test_80_20_of_one_case_or_with_a_wrong_seed_is_refused(ids, seed, words):
    with pytest.raises(UserError, match=words):
        eighty_twenty(ids, seed)


def test_the_inner_split_takes_at_least_one_case_and_leaves_one_to_train_on():
    assert [len(part) for part in inner_split(IDS, 0.25)] == [9, 3]
    assert [len(part) for part in inner_split(IDS, 0.01)] == [11, 1]
    assert [len(part) for part in inner_split(IDS[:2], 0.99)] == [1, 1]
    assert inner_split(IDS, 0.0) == (IDS, [])
    assert inner_split(IDS[:1], 0.5) == (IDS[:1], [])  # the only case must be trained on
    train, val = inner_split(IDS, 0.25)
    assert sorted(train + val) == IDS


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_wrong_inner_fraction_is_refused(fraction):
    with pytest.raises(UserError, match=r"data\.split\.inner_fraction"):
        inner_split(IDS, fraction)


@pytest.mark.parametrize("fold", range(3))
def test_the_cases_of_a_patient_are_on_one_side_of_every_kind_of_split(fold):
    splits = [fold_cases(IDS, fold, 3, PATIENTS), eighty_twenty(IDS, fold, PATIENTS), inner_split(IDS, 0.3, PATIENTS)]
    for one, other in splits:
        assert one and other and sorted(one + other) == IDS
        assert not {PATIENTS[name] for name in one} & {PATIENTS[name] for name in other}


def test_with_one_case_per_patient_splits_are_the_same_as_without_patients():
    for fold in range(5):
        assert fold_cases(IDS, fold, 5, ALONE) == fold_cases(IDS, fold)
    assert eighty_twenty(IDS, 7, ALONE) == eighty_twenty(IDS, 7)
    assert inner_split(IDS, 0.3, ALONE) == inner_split(IDS, 0.3)


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(UserError, match=r"7 folds need as many patients, the dataset has 6 \(of 12 cases\)"):
        fold_cases(IDS, 0, 7, PATIENTS)
