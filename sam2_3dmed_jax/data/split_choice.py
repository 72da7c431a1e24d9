"""The split that settings choose. Training, the demo and `evaluate` ask here, so that they cannot disagree.

A run keeps its split in `split.json`. What scores its checkpoint on the same data takes the run's settings unless
told otherwise, and refuses cases that the checkpoint was trained on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from etils import epath

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.split_files import listed, read_how, read_patients, read_splits, sha256
from sam2_3dmed_jax.data.splits import RANDOM_STATE, Split, eighty_twenty, fold_cases, inner_split
from sam2_3dmed_jax.errors import UserError, naming

SPLIT = "split.json"  # in a run's folder
FIELDS = ("split", "fold", "folds", "split_seed", "splits", "patients", "inner_fraction")  # of `DataConfig`


def choose_split(ids: Sequence[str], data: DataConfig) -> Split:
    """The split of a dataset's cases that the settings choose.

    Args:
        ids: the ids of all cases of the dataset, in any order.
        data: its `FIELDS`.

    Raises:
        UserError: a fold that does not exist, too few cases, or files of splits or patients that do not fit.
    """
    if data.split not in (known := get_args(get_type_hints(DataConfig)["split"])):
        raise UserError(f"data.split: '{data.split}' is no split; choose from {', '.join(known)}")
    patients = None
    if data.patients:
        with naming("data.patients"):
            patients = read_patients(data.patients, ids)
    if data.splits:
        split = _of_file(ids, data, patients)
    elif data.split == "80/20":
        if data.fold:
            raise UserError(f"data.fold: 80/20 has no fold {data.fold}; leave it at 0 and change data.split_seed")
        training, test = eighty_twenty(ids, data.split_seed, patients)
        split = Split(tuple(training), (), tuple(test))
    else:
        training, test = fold_cases(ids, data.fold, data.folds, patients)
        split = Split(tuple(training), (), tuple(test))
    if split.val:  # a run's file has drawn it
        return split
    train, val = inner_split(split.train, data.inner_fraction, patients)
    return Split(tuple(train), tuple(val), split.test)


def how_made(data: DataConfig, fingerprint: str) -> dict[str, Any]:
    """What a split was made by: the dataset's fingerprint, the settings, and the SHA-256 of their files.

    Paths are absolute.

    Raises:
        UserError: a file that cannot be read.
    """
    how: dict[str, Any] = {
        "data": absolute(data.path),
        "fingerprint": fingerprint,
        **{name: getattr(data, name) for name in FIELDS},
    }
    for name in ("splits", "patients"):
        if how[name]:
            how[f"{name}_sha256"] = sha256(how[name])
            how[name] = absolute(how[name])
    return {**how, "random_state": RANDOM_STATE}


def split_to_score(ids: Sequence[str], fingerprint: str, checkpoint: str, given: Mapping[str, Any]) -> Split:
    """The split whose held-out cases a checkpoint is scored on.

    Args:
        ids: the ids of all cases of the dataset.
        fingerprint: of the dataset (`msd.fingerprint`).
        checkpoint: its folder, beside the `split.json` of the run that trained it, if that is at hand.
        given: the fields of `FIELDS` that the user gives. The others are the run's when it trained on this very
            dataset, and defaults otherwise or when `split` or `splits` is given.

    Raises:
        UserError: as `choose_split`; or the run has trained on a case that would be scored, or chosen settings by it.
    """
    record = epath.Path(absolute(checkpoint)).parent / SPLIT
    how = read_how(record) if record.exists() else {}
    if how.get("fingerprint") != fingerprint:  # cases of other data may share their ids
        return choose_split(ids, DataConfig(**given))
    fields = {} if {"split", "splits"} & given.keys() else _fields(how, record)
    split = choose_split(ids, DataConfig(**{**fields, **given}))
    (run,) = read_splits(record)
    if seen := sorted({*run.train, *run.val} & {*split.test}):
        raise UserError(
            f"{checkpoint} was trained on {len(seen)} of the {len(split.test)} cases to score ({listed(seen)}), as "
            f"{record} says; leave out the flags of the split, or give --splits {record}"
        )
    return split


def run_of(checkpoint: str, known: str) -> dict[str, Any]:
    """How the run that trained a checkpoint split this very dataset, and its seed; {} if no such run is at hand."""
    folder = epath.Path(absolute(checkpoint)).parent
    how = read_how(folder / SPLIT) if (folder / SPLIT).exists() else {}
    if how.get("fingerprint") != known:
        return {}
    try:
        return {**how, "seed": int(json.loads((folder / "config.json").read_text())["training"]["seed"])}
    except (OSError, ValueError, KeyError, TypeError):
        return how


def _of_file(ids: Sequence[str], data: DataConfig, patients: Mapping[str, str] | None) -> Split:
    if data.split != "kfold":
        raise UserError(f"data.splits: {data.splits} and data.split {data.split} are two splits; leave one out")
    with naming("data.splits"):
        folds = read_splits(data.splits)
        if not 0 <= data.fold < len(folds):
            raise UserError(f"{data.splits} has no fold {data.fold}; choose data.fold from 0 to {len(folds) - 1}")
        split = folds[data.fold]
        where = f"{data.splits}: fold {data.fold}"
        if unknown := sorted({*split.train, *split.val, *split.test} - {*ids}):
            raise UserError(f"{where} names {listed(unknown)}, which the dataset lacks; correct the file or data.path")
        if patients:
            sides = [{patients[case] for case in part} for part in (split.train, split.val, split.test)]
            torn = sorted(sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
            if torn:
                raise UserError(f"{where} has cases of patient {listed(torn)} on two sides; keep a patient together")
    return split


def _fields(how: Mapping[str, Any], record: os.PathLike[str]) -> dict[str, Any]:
    """The settings of a run, checked: a file may have been edited."""
    fields = {name: how[name] for name in FIELDS if name in how}
    for name, value in fields.items():
        default = getattr(DataConfig(), name)
        if not isinstance(value, int | float if isinstance(default, float) else type(default)):
            raise UserError(f"{record}: how.{name} is {value!r}, not like {default!r}; correct it, or delete the file")
    return fields


def absolute(path: str) -> str:
    """A path that other working directories understand; addresses such as `gs://` and no path stay as they are."""
    return path if not path or "://" in path else os.path.realpath(path)
