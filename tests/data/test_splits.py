"""Folds equal nnU-Net's default."""

import pytest

from sam2_3dmed_jax.data.splits import fold_cases
from sam2_3dmed_jax.errors import UserError

IDS = [f"case_{i:02d}" for i in range(12)]
# scikit-learn 1.9.1: the test indices of KFold(5, shuffle=True, random_state=12345).split(range(12)).
SKLEARN = [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]


@pytest.mark.parametrize("fold", range(5))
def test_a_fold_holds_out_the_cases_that_nnunet_holds_out(fold):
    assert fold_cases(IDS, fold)[1] == [IDS[i] for i in sorted(SKLEARN[fold])]


def test_each_case_is_held_out_once_and_never_trained_on_in_its_fold():
    held = []
    for fold in range(5):
        training, test = fold_cases(IDS, fold)
        assert not set(training) & set(test) and sorted(training + test) == IDS
        held += test
    assert sorted(held) == IDS


def test_folds_do_not_depend_on_the_order_of_the_ids():
    assert fold_cases(IDS, 1) == fold_cases(IDS[::-1], 1)


@pytest.mark.parametrize(("fold", "folds", "words"), [(5, 5, "data.fold"), (-1, 5, "data.fold"), (0, 13, "data.folds")])
def test_folds_that_do_not_exist_are_refused(fold, folds, words):
    with pytest.raises(UserError, match=words):
        fold_cases(IDS, fold, folds)
