"""Files of splits: nnU-Net's `splits_final.json`, the `split.json` of a run, and a table of patients.

nnU-Net's file is a list with `{"train": [...], "val": [...]}` a fold, whose "val" is our `Split.test`; it knows no
inner split. A run's is one object with `train`, `val` (inner), `test` (held out) and `how` it was made.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import reprlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.image_file import written_whole

MAX_BYTES = 64 << 20  # of any of these files; more is another kind of file

Path = str | os.PathLike[str]


def read_splits(path: Path) -> list[Split]:
    """The folds of nnU-Net's file, without inner cases; or the one split of a run's file, as it stands.

    Raises:
        UserError: no such file, not JSON, members that are missing or no lists of case ids, an empty training or
            held-out part, or a case that stands twice.
    """
    record = _json(path)
    if isinstance(record, dict):
        return [_split(record, str(path), ("train", "val", "test"))]
    if not isinstance(record, list) or not record:
        raise UserError(
            f'{path} is {_short(record)}; give a list with {{"train": [...], "val": [...]}} a fold, as nnU-Net writes'
        )
    return [_split(fold, f"{path}: fold {number}", ("train", "val")) for number, fold in enumerate(record)]


def write_nnunet_splits(path: Path, splits: Sequence[Split]) -> None:
    """Write nnU-Net's `splits_final.json`: its "train" is `train` and `val` together, its "val" is `test`.

    Raises:
        UserError: the file cannot be written.
    """
    folds = [{"train": sorted(split.train + split.val), "val": list(split.test)} for split in splits]
    _write(path, json.dumps(folds, indent=4))


def keep_split(path: Path, split: Split, how: dict[str, Any]) -> None:
    """Write a run's split under a temporary name, then rename; or check that the one that is there has these cases.

    Raises:
        UserError: the file holds other cases, or cannot be read or written.
    """
    if epath.Path(path).exists():
        if read_splits(path) != [split]:
            raise UserError(
                f"{path} holds another split than the data and its files give today; put them back as they were, or "
                "choose another --out"
            )
        return
    cases = {"train": list(split.train), "val": list(split.val), "test": list(split.test)}
    _write(path, json.dumps({"how": how, **cases}, indent=2))


def read_how(path: Path) -> dict[str, Any]:
    """How the split of a run's file was made.

    Raises:
        UserError: no such file, or one that does not say.
    """
    record = _json(path)
    if not isinstance(record, dict) or not isinstance(record.get("how"), dict):
        raise UserError(f"{path} does not say how its split was made; give the split.json that a training run wrote")
    return record["how"]


def read_patients(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Case to patient, from a CSV table with the columns `case` and `patient`; others are passed over.

    Raises:
        UserError: no such table, a case of `ids` that it lacks, or one that it gives to two patients.
    """
    try:
        rows = csv.DictReader(io.StringIO(_bytes(path).decode("utf-8-sig"), newline=""), skipinitialspace=True)
        header = rows.fieldnames or []
        cells = [(rows.line_num, (row.get("case") or "").strip(), (row.get("patient") or "").strip()) for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV table in UTF-8 ({error}); give one with the columns case,patient") from None
    if not {"case", "patient"} <= set(header):
        found = ", ".join(map(_short, header[:6])) or "none"
        raise UserError(f"{path} has the columns {found}; give a CSV table with the columns case,patient")
    patients: dict[str, str] = {}
    for line, case, patient in cells:
        if not case or not patient:
            raise UserError(f"{path}, line {line}: it names no {'patient' if case else 'case'}; fill in both cells")
        if patients.setdefault(case, patient) != patient:
            raise UserError(
                f"{path}, line {line}: {_short(case)} is of patient {_short(patient)}, and above of "
                f"{_short(patients[case])}; give each case one patient"
            )
    if missing := sorted(set(ids) - patients.keys()):
        raise UserError(f"{path} has no row for {listed(missing)}; add a row for each case of the dataset")
    return patients


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal.

    Raises:
        UserError: no such file, or one too large for a file of splits or patients.
    """
    return hashlib.sha256(_bytes(path)).hexdigest()


def listed(ids: Sequence[str]) -> str:
    """Some ids in words; of many, the first and their number."""
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(map(_short, ids[:3])) + more


def _split(record: Any, where: str, members: Sequence[str]) -> Split:
    """`members` are train and held out, or train, inner and held out."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is {_short(record)}; give an object with {' and '.join(members)}")
    parts = {name: _ids(record, where, name) for name in members}
    held_out = members[-1]
    for name in ("train", held_out):
        if not parts[name]:
            raise UserError(f"{where}: '{name}' is empty; give it the ids of its cases")
    seen: dict[str, str] = {}
    for name in members:
        for case in parts[name]:
            if case in seen:
                twice = f"twice in '{name}'" if seen[case] == name else f"in '{seen[case]}' and in '{name}'"
                raise UserError(f"{where}: {_short(case)} stands {twice}; give each case one place")
            seen[case] = name
    inner = parts["val"] if held_out != "val" else []
    return Split(tuple(sorted(parts["train"])), tuple(sorted(inner)), tuple(sorted(parts[held_out])))


def _ids(record: dict[str, Any], where: str, name: str) -> list[str]:
    if name not in record:
        raise UserError(f"{where} has no '{name}'; add the list of its case ids")
    value = record[name]
    wrong = value if not isinstance(value, list) else next((i for i in value if not isinstance(i, str)), "")
    if wrong != "" or not isinstance(value, list):
        raise UserError(f"{where}: '{name}' holds {_short(wrong)}; give a list of case ids, which are texts")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); give a file of splits") from None


def _bytes(path: Path) -> bytes:
    file = epath.Path(path)
    try:
        if not file.is_file():
            raise UserError(f"{path} is no file; give the path of one")
        if (size := file.stat().length) > MAX_BYTES:
            raise UserError(f"{path} is a file of {size >> 20} MiB; give one of at most {MAX_BYTES >> 20}")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a file that can") from None


def _write(path: Path, text: str) -> None:
    with written_whole(path, ".json") as part:
        part.write_text(text)


def _short(value: Any) -> str:
    return reprlib.repr(value)
