"""Which cases train and which are held out: nnU-Net's folds, the paper's 80/20, and an inner validation split.

A name warning: nnU-Net calls the held-out cases of a fold "val". Here they are `test`, as results are reported on
them, and `val` is an inner part taken out of the training cases, on which settings may be chosen (METHOD.md).
Everything is drawn over patients, so that no patient's cases stand on two sides; without a list of patients each case
is a patient. The files of splits are `split_files`; what an experiment's settings choose is `split_choice`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.errors import UserError

RANDOM_STATE = 12345  # nnU-Net's


@dataclass(frozen=True)
class Split:
    """Three sets of case ids, each sorted; no case and no patient is in two."""

    train: tuple[str, ...]  # weights are fitted to these
    val: tuple[str, ...]  # the inner one, for choosing settings; never nnU-Net's "val". May be empty
    test: tuple[str, ...]  # held out: nnU-Net's "val"


def fold_cases(
    ids: Sequence[str], fold: int, folds: int = 5, patients: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Training and held-out ids of one fold, each sorted (`sklearn.model_selection.KFold(shuffle=True)`, as nnU-Net).

    Args:
        ids: all cases, in any order.
        fold: from 0.
        folds: how many.
        patients: case to patient, for every case; folds are then over patients, in the order of their first cases.

    Raises:
        UserError: a fold that does not exist, or fewer cases or patients than folds.
    """
    if folds < 2:
        raise UserError(f"data.folds: {folds} is no number of folds; give 2 or more")
    if not 0 <= fold < folds:
        raise UserError(f"data.fold: {fold} does not exist; choose 0 to {folds - 1}")
    groups = _groups(ids, patients)
    if len(groups) < folds:
        found, needed = f"the dataset has {_count(groups, patients)}", "patients" if patients else "cases"
        raise UserError(f"data.folds: {folds} folds need as many {needed}, {found}; use fewer folds")
    shuffled = np.arange(len(groups))
    np.random.RandomState(RANDOM_STATE).shuffle(shuffled)
    return _parted(groups, np.array_split(shuffled, folds)[fold].tolist())


def eighty_twenty(
    ids: Sequence[str], seed: int, patients: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Training and held-out ids of the paper's 80/20, each sorted; 20 % is rounded up.

    The paper does not say how it draws: ours is `sklearn.model_selection.train_test_split(test_size=0.2)` over sorted
    ids, `patients` as in `fold_cases`.

    Raises:
        UserError: fewer than two cases or patients, or a seed that is none.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"data.split_seed: {seed} is no seed; give a whole number from 0 to {2**32 - 1}")
    groups = _groups(ids, patients)
    if len(groups) < 2:
        raise UserError(f"data.split: 80/20 needs two cases, the dataset has {_count(groups, patients)}; add some")
    drawn = np.random.RandomState(seed).permutation(len(groups))
    return _parted(groups, drawn[: -(-len(groups) // 5)].tolist())


def inner_split(
    training: Sequence[str], fraction: float, patients: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Takes the inner validation cases out of the training cases: `(train, val)`, each sorted.

    Args:
        training: the training cases of a fold.
        fraction: of them (of their patients) to take, at least one; 0: none.
        patients: as in `fold_cases`.

    Returns:
        The two; nothing is taken from a single case or patient, which must be trained on.

    Raises:
        UserError: a fraction outside of [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UserError(f"data.inner_fraction: {fraction} is no fraction of the training cases; give 0 to less than 1")
    groups = _groups(training, patients)
    if fraction == 0 or len(groups) < 2:
        return sorted(training), []
    taken = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    drawn = np.random.RandomState(RANDOM_STATE).permutation(len(groups))
    return _parted(groups, drawn[:taken].tolist())


def _groups(ids: Sequence[str], patients: Mapping[str, str] | None) -> list[list[str]]:
    """The cases of each patient, sorted by first case: with a case a patient, the order is that of the ids."""
    groups: dict[str, list[str]] = {}
    for name in sorted(ids):
        groups.setdefault(patients[name] if patients else name, []).append(name)
    return list(groups.values())


def _parted(groups: Sequence[Sequence[str]], held_out: Iterable[int]) -> tuple[list[str], list[str]]:
    held = set(held_out)
    kept = itertools.chain.from_iterable(group for i, group in enumerate(groups) if i not in held)
    return sorted(kept), sorted(itertools.chain.from_iterable(groups[i] for i in held))


def _count(groups: Sequence[Sequence[str]], patients: Mapping[str, str] | None) -> str:
    return f"{len(groups)} (of {sum(map(len, groups))} cases)" if patients else str(len(groups))
