"""Choice of the data split from the settings, for training, the demo and `evaluate`.

A run stores its split in `split.json`. `held_out` chooses the cases that its checkpoint is scored on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from sam2_3dmed_jax.config import DataConfig, SplitConfig
from sam2_3dmed_jax.data.split_files import (
    first_ids,
    read_patients,
    read_splits,
    small_file_sha256,
)
from sam2_3dmed_jax.data.splits import RANDOM_STATE, Split, eighty_twenty, fold_cases, inner_split
from sam2_3dmed_jax.errors import UserError, naming

SPLIT_FILE = "split.json"  # in the folder of a run
# The settings of a split: their names in split.json and as flags of `evaluate`, and their fields in `SplitConfig`.
_IN_GROUP = {
    "split": "method",
    "folds": "folds",
    "split_seed": "seed",
    "splits": "file",
    "patients": "patients",
    "inner_fraction": "inner_fraction",
}
SPLIT_FIELDS = ("split", "fold", "folds", "split_seed", "splits", "patients", "inner_fraction")


def choose_split(ids: Sequence[str], data: DataConfig) -> Split:
    """Return the split of a dataset's cases.

    Args:
        ids: ids of all cases of the dataset, in any order.
        data: `fold` and `split` are used.

    Raises:
        UserError: the fold does not exist, there are too few cases, or a file of splits or patients does not fit.
    """
    settings = data.split
    if settings.method not in (known := get_args(get_type_hints(SplitConfig)["method"])):
        raise UserError(f"data.split.method: '{settings.method}' does not exist; choose from {', '.join(known)}")
    patients = None
    if settings.patients:
        with naming("data.split.patients"):
            patients = read_patients(settings.patients, ids)
    if settings.file:
        split = _split_from_file(ids, data, patients)
    elif settings.method == "80/20":
        if data.fold:
            raise UserError(f"data.fold: 80/20 has no fold {data.fold}; leave it at 0 and change data.split.seed")
        training, test = eighty_twenty(ids, settings.seed, patients)
        split = Split(tuple(training), (), tuple(test))
    else:
        training, test = fold_cases(ids, data.fold, settings.folds, patients)
        split = Split(tuple(training), (), tuple(test))
    if split.val:  # from the file of a run
        return split
    train, val = inner_split(split.train, settings.inner_fraction, patients)
    return Split(tuple(train), tuple(val), split.test)


def split_settings(data: DataConfig) -> dict[str, Any]:
    """Return the settings of a split under the names of `SPLIT_FIELDS`."""
    return {name: getattr(data.split, _IN_GROUP[name]) if name in _IN_GROUP else data.fold for name in SPLIT_FIELDS}


def with_split(settings: Mapping[str, Any]) -> DataConfig:
    """Return a `DataConfig` with these settings, under the names of `SPLIT_FIELDS`; the others have their defaults."""
    split = SplitConfig(**{_IN_GROUP[name]: value for name, value in settings.items() if name in _IN_GROUP})
    return DataConfig(fold=settings.get("fold", 0), split=split)


def split_description(data: DataConfig, fingerprint: str) -> dict[str, Any]:
    """Return what determines a split: the dataset's fingerprint, the settings, and the SHA-256 of their files.

    Paths are absolute.

    Raises:
        UserError: a file cannot be read.
    """
    description: dict[str, Any] = {
        "data": absolute_path(data.path),
        "fingerprint": fingerprint,
        **split_settings(data),
    }
    for name in ("splits", "patients"):
        if description[name]:
            description[f"{name}_sha256"] = small_file_sha256(description[name])
            description[name] = absolute_path(description[name])
    return {**description, "random_state": RANDOM_STATE}


def _split_from_file(ids: Sequence[str], data: DataConfig, patients: Mapping[str, str] | None) -> Split:
    if data.split.method != "kfold":
        raise UserError(
            f"data.split.file: {data.split.file} and data.split.method {data.split.method} are two splits; remove one"
        )
    with naming("data.split.file"):
        folds = read_splits(data.split.file)
        if not 0 <= data.fold < len(folds):
            raise UserError(f"{data.split.file} has no fold {data.fold}; choose data.fold from 0 to {len(folds) - 1}")
        split = folds[data.fold]
        where = f"{data.split.file}: fold {data.fold}"
        if unknown := sorted({*split.train, *split.val, *split.test} - {*ids}):
            raise UserError(
                f"{where} contains {first_ids(unknown)}, which the dataset lacks; correct the file or data.path"
            )
        if patients:
            patient_sets = [{patients[case] for case in part} for part in (split.train, split.val, split.test)]
            train, val, test = patient_sets
            divided = sorted(train & val | train & test | val & test)
            if divided:
                raise UserError(
                    f"{where} has cases of patient {first_ids(divided)} on two sides; keep a patient together"
                )
    return split


def checked_settings(description: Mapping[str, Any], file: os.PathLike[str]) -> dict[str, Any]:
    """Return the settings of a run after a check of their types, because the file may have been edited.

    Raises:
        UserError: a setting has another type.
    """
    settings = {name: description[name] for name in SPLIT_FIELDS if name in description}
    defaults = split_settings(DataConfig())
    for name, value in settings.items():
        default = defaults[name]
        if not isinstance(value, int | float if isinstance(default, float) else type(default)):
            raise UserError(
                f"{file}: how.{name} is {value!r}, expected a value like {default!r}; correct it, or delete the file"
            )
    return settings


def absolute_path(path: str) -> str:
    """Return the absolute path; names such as `hf://org/repo` and the empty path are unchanged."""
    return path if not path or "://" in path else os.path.realpath(path)
