"""Data splits: nnU-Net's cross-validation folds, the paper's 80/20, and an inner validation split.

nnU-Net calls the held-out cases of a fold "val". Here they are `test`, because results are reported on them, and `val`
is a part of the training cases, on which settings may be chosen (`docs/explanation/method.md`). Splits are drawn over
patients, so that all cases of a patient are on one side; without a list of patients each case is a patient.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.errors import UserError

RANDOM_STATE = 12345  # the one of nnU-Net


@dataclass(frozen=True)
class Split:
    """Three disjoint sets of case ids, each sorted; no patient is in two of them."""

    train: tuple[str, ...]  # the weights are fitted to these
    val: tuple[str, ...]  # inner validation, to choose settings; may be empty
    test: tuple[str, ...]  # held out: nnU-Net's "val"


def fold_cases(
    ids: Sequence[str], fold: int, folds: int = 5, patients: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the training and held-out ids of one fold, each sorted.

    The folds are those of nnU-Net: `sklearn.model_selection.KFold(shuffle=True, random_state=12345)`.

    Args:
        ids: ids of all cases, in any order.
        fold: number of the fold, from 0.
        folds: number of folds.
        patients: case to patient, for all cases; folds are drawn over patients, in the order of their first cases.

    Raises:
        UserError: the fold does not exist, or there are fewer cases or patients than folds.
    """
    if folds < 2:
        raise UserError(f"data.split.folds: {folds} is too few; give 2 or more folds")
    if not 0 <= fold < folds:
        raise UserError(f"data.fold: {fold} does not exist; choose 0 to {folds - 1}")
    groups = _groups(ids, patients)
    if len(groups) < folds:
        available, needed = f"the dataset has {_count(groups, patients)}", "patients" if patients else "cases"
        raise UserError(f"data.split.folds: {folds} folds need as many {needed}, {available}; use fewer folds")
    shuffled = np.arange(len(groups))
    np.random.RandomState(RANDOM_STATE).shuffle(shuffled)
    return _split_groups(groups, np.array_split(shuffled, folds)[fold].tolist())


def eighty_twenty(
    ids: Sequence[str], seed: int, patients: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the training and held-out ids of the paper's 80/20 split, each sorted; 20 % is rounded up.

    The paper does not describe its draw; this is `sklearn.model_selection.train_test_split(test_size=0.2)` over sorted
    ids. `patients` is as in `fold_cases`.

    Raises:
        UserError: there are fewer than two cases or patients, or the seed is not valid.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"data.split.seed: {seed} is not a seed; give an integer from 0 to {2**32 - 1}")
    groups = _groups(ids, patients)
    if len(groups) < 2:
        raise UserError(
            f"data.split.method: 80/20 needs two cases, the dataset has {_count(groups, patients)}; add some"
        )
    drawn = np.random.RandomState(seed).permutation(len(groups))
    return _split_groups(groups, drawn[: -(-len(groups) // 5)].tolist())


def inner_split(
    training: Sequence[str], fraction: float, patients: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Split the training cases into `(train, val)`, each sorted.

    Args:
        training: training cases of a fold.
        fraction: fraction of the cases, or of their patients, for validation, rounded to at least one; 0: none.
        patients: as in `fold_cases`.

    Returns:
        Both sets; a single case or patient is always trained on.

    Raises:
        UserError: the fraction is outside of [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"data.split.inner_fraction: {fraction} is not a fraction of the training cases; give 0 to less than 1"
        )
    groups = _groups(training, patients)
    if fraction == 0 or len(groups) < 2:
        return sorted(training), []
    number = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    drawn = np.random.RandomState(RANDOM_STATE).permutation(len(groups))
    return _split_groups(groups, drawn[:number].tolist())


def _groups(ids: Sequence[str], patients: Mapping[str, str] | None) -> list[list[str]]:
    """Group the cases by patient, sorted by their first cases; without patients each case is a group."""
    groups: dict[str, list[str]] = {}
    for name in sorted(ids):
        groups.setdefault(patients[name] if patients else name, []).append(name)
    return list(groups.values())


def _split_groups(groups: Sequence[Sequence[str]], held_out: Iterable[int]) -> tuple[list[str], list[str]]:
    held = set(held_out)
    training = itertools.chain.from_iterable(group for i, group in enumerate(groups) if i not in held)
    return sorted(training), sorted(itertools.chain.from_iterable(groups[i] for i in held))


def _count(groups: Sequence[Sequence[str]], patients: Mapping[str, str] | None) -> str:
    return f"{len(groups)} (of {sum(map(len, groups))} cases)" if patients else str(len(groups))
