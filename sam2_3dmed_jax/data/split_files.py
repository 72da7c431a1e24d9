"""Split files: nnU-Net's `splits_final.json`, the `split.json` of a training run, and tables of patients.

nnU-Net's file is a list with one `{"train": [...], "val": [...]}` per fold, where "val" is `Split.test` here; it has no
inner validation. The file of a run is one object with `train`, `val` (inner validation), `test` (held out) and `how`,
the description of the split.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.hashing import sha256_of_chunks
from sam2_3dmed_jax.runtime.user_files import read_bytes, read_json, read_table

MAX_BYTES = 64 << 20  # limit for each of these files; larger files are something else

FilePath = str | os.PathLike[str]


def read_splits(path: FilePath) -> list[Split]:
    """Return the folds of nnU-Net's file, without inner validation, or the one split of a run's file.

    Raises:
        UserError: the file does not exist or is not JSON, a list of case ids is missing or not valid, there are no
            training or held-out cases, or a case occurs twice.
    """
    record = _json(path)
    if isinstance(record, dict):
        return [_split(record, str(path), ("train", "val", "test"))]
    if not isinstance(record, list) or not record:
        raise UserError(
            f'{path} is {_short(record)}; give a list of {{"train": [...], "val": [...]}}, one per fold, as nnU-Net'
        )
    return [_split(fold, f"{path}: fold {number}", ("train", "val")) for number, fold in enumerate(record)]


def write_nnunet_splits(path: FilePath, splits: Sequence[Split]) -> None:
    """Write nnU-Net's `splits_final.json`, where "train" is `train` and `val` together, and "val" is `test`.

    Raises:
        UserError: the file cannot be written.
    """
    folds = [{"train": sorted(split.train + split.val), "val": list(split.test)} for split in splits]
    write_text(path, json.dumps(folds, indent=4))


def write_run_split(path: FilePath, split: Split, description: dict[str, Any]) -> None:
    """Write the split of a run, or check that an existing file has the same cases.

    Raises:
        UserError: the file has other cases, or cannot be read or written.
    """
    if Path(path).exists():
        if read_splits(path) != [split]:
            raise UserError(
                f"{path} has another split than the data and settings give now; restore them, or choose another --out"
            )
        return
    replace_run_split(path, split, description)


def replace_run_split(path: FilePath, split: Split, description: dict[str, Any]) -> None:
    """Write the split of a run, in place of an existing one.

    Raises:
        UserError: the file cannot be written.
    """
    cases = {"train": list(split.train), "val": list(split.val), "test": list(split.test)}
    write_text(path, json.dumps({"how": description, **cases}, indent=2))


def read_split_description(path: FilePath) -> dict[str, Any]:
    """Read the description of the split in the file of a run.

    Raises:
        UserError: the file does not exist, or has no description.
    """
    record = _json(path)
    if not isinstance(record, dict) or not isinstance(record.get("how"), dict):
        raise UserError(f"{path} has no description of its split ('how'); give the split.json of a training run")
    return record["how"]


def read_patients(path: FilePath, ids: Sequence[str]) -> dict[str, str]:
    """Read case to patient from a CSV table with the columns `case` and `patient`; other columns are ignored.

    Raises:
        UserError: the table does not exist, lacks a case of `ids`, or assigns a case to two patients.
    """
    table = read_table(path, "give a CSV table with the columns case,patient", MAX_BYTES, strip=True)
    if not {"case", "patient"} <= set(table.columns):
        columns = ", ".join(map(_short, table.columns[:6])) or "none"
        raise UserError(f"{path} has the columns {columns}; give a CSV table with the columns case,patient")
    patients: dict[str, str] = {}
    for line, cells in table.rows:
        case, patient = cells["case"], cells["patient"]
        if not case or not patient:
            raise UserError(f"{path}, line {line}: the {'patient' if case else 'case'} is missing; fill in both cells")
        if patients.setdefault(case, patient) != patient:
            raise UserError(
                f"{path}, line {line}: {_short(case)} has the patient {_short(patient)}, and above "
                f"{_short(patients[case])}; give each case one patient"
            )
    if missing := sorted(set(ids) - patients.keys()):
        raise UserError(f"{path} has no row for {first_ids(missing)}; add a row for each case of the dataset")
    return patients


def small_file_sha256(path: FilePath) -> str:
    """Return the SHA-256 of a small file, in hexadecimal.

    Raises:
        UserError: the file does not exist, or is larger than `MAX_BYTES`.
    """
    return sha256_of_chunks([read_bytes(path, "give the path of a small file", MAX_BYTES)])


def first_ids(ids: Sequence[str]) -> str:
    """Return up to three quoted ids, and the number of the others, for messages."""
    return listed([_short(id) for id in ids])


def _split(record: Any, where: str, members: Sequence[str]) -> Split:
    """Check one split; `members` are the keys for training, optionally inner validation, and held out."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is {_short(record)}; give an object with {' and '.join(members)}")
    parts = {name: _ids(record, where, name) for name in members}
    held_out = members[-1]
    for name in ("train", held_out):
        if not parts[name]:
            raise UserError(f"{where}: '{name}' is empty; add the ids of its cases")
    member_of: dict[str, str] = {}
    for name in members:
        for case in parts[name]:
            if case in member_of:
                twice = f"twice in '{name}'" if member_of[case] == name else f"in '{member_of[case]}' and in '{name}'"
                raise UserError(f"{where}: {_short(case)} is {twice}; list each case once")
            member_of[case] = name
    inner = parts["val"] if held_out != "val" else []
    return Split(tuple(sorted(parts["train"])), tuple(sorted(inner)), tuple(sorted(parts[held_out])))


def _ids(record: dict[str, Any], where: str, name: str) -> list[str]:
    if name not in record:
        raise UserError(f"{where} has no '{name}'; add the list of case ids")
    value = record[name]
    wrong = value if not isinstance(value, list) else next((i for i in value if not isinstance(i, str)), "")
    if wrong != "" or not isinstance(value, list):
        raise UserError(f"{where}: '{name}' holds {_short(wrong)}; give a list of case ids as text")
    return value


def _json(path: FilePath) -> Any:
    return read_json(path, "give a split file", MAX_BYTES)


def _short(value: Any) -> str:
    return reprlib.repr(value)
