"""Cross-validation folds over sorted case ids, equal to nnU-Net's default: shuffled KFold with random state 12345."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.errors import UserError

RANDOM_STATE = 12345


def fold_cases(ids: Sequence[str], fold: int, folds: int = 5) -> tuple[list[str], list[str]]:
    """Training and held-out ids of one fold, each sorted (`sklearn.model_selection.KFold(shuffle=True)`).

    Raises:
        UserError: a fold that does not exist, or fewer cases than folds.
    """
    if not 0 <= fold < folds:
        raise UserError(f"data.fold: {fold} does not exist; choose 0 to {folds - 1}")
    if len(ids) < folds:
        raise UserError(f"data.folds: {folds} folds need as many cases, the dataset has {len(ids)}; use fewer folds")
    ordered = sorted(ids)
    shuffled = np.arange(len(ordered))
    np.random.RandomState(RANDOM_STATE).shuffle(shuffled)
    held_out = set(np.array_split(shuffled, folds)[fold].tolist())
    training = [name for i, name in enumerate(ordered) if i not in held_out]
    return training, [ordered[i] for i in sorted(held_out)]
