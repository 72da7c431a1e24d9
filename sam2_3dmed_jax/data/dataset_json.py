"""Parser of `dataset.json` of MSD and nnU-Net (v1 and v2): labels, channel, name and file ending.

MSD and nnU-Net v1 map values to names, `{"1": "spleen"}`; v2 maps names to values, `{"spleen": 1}`. Regions (names with
several values), the label `ignore` and several channels are not supported.
"""

from __future__ import annotations

import os
import re
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.object_ids import MAX_OBJECT_ID
from sam2_3dmed_jax.runtime.user_files import parse_json, read_bytes

MAX_LABEL = 255  # labels are stored as uint8
MAX_BYTES = 4 << 20  # a larger file is not a list of labels
_VALUE = re.compile("[0-9]{1,9}")


def parse_description(data: bytes, where: str) -> dict[str, Any]:
    """Parse the file, which must be a JSON object.

    Raises:
        UserError: the file is not JSON, or not an object.
    """
    record = parse_json(data, where, "fix it, or unpack the dataset again")
    if not isinstance(record, dict):
        raise UserError(f"{where} does not describe a dataset, expected a JSON object; unpack the dataset again")
    return record


def read_label_names(path: str | os.PathLike[str], option: str) -> dict[int, str]:
    """Return names of labels from the `dataset.json` of MSD or nnU-Net, or from a JSON file with its `labels` alone.

    Args:
        path: the file.
        option: the flag or argument that names it, for messages.

    Raises:
        UserError: it cannot be read, or as `declared_labels`.
    """
    where = f"{option}: {path}"
    fix = "give a JSON file with labels and their names"
    record = parse_description(read_bytes(path, fix, MAX_BYTES), where)
    labels = record.get("labels", record)
    if isinstance(labels, dict):  # nnU-Net predicts no voxel as `ignore`
        labels = {key: name for key, name in labels.items() if "ignore" not in (key, name)}
    return declared_labels({"labels": labels}, where, MAX_OBJECT_ID)


def declared_labels(record: dict[str, Any], where: str, most: int = MAX_LABEL) -> dict[int, str]:
    """Return label value to name, sorted by value, without the background.

    Args:
        record: the content of the file.
        where: the file, for messages.
        most: the largest value.

    Raises:
        UserError: no labels are declared, or labels that are not supported.
    """
    declared = record.get("labels")
    if not isinstance(declared, dict):
        raise UserError(f'{where}: \'labels\' is missing or not an object; declare them, such as {{"1": "spleen"}}')
    # {"1": 1} is a name and its value as in nnU-Net v2, because names in MSD are text.
    msd = all(map(_VALUE.fullmatch, declared)) and not all(type(name) is int for name in declared.values())
    named = []
    for key, content in declared.items():
        if isinstance(content, list):
            raise UserError(
                f"{where}: label {key!r} is a region {shortened(content)}, expected one value per name; regions are "
                "not supported, so declare their values separately"
            )
        value, name = (_value(key), content) if msd else (_value(content), key)
        if value is None or not isinstance(name, str):
            raise UserError(
                f"{where}: 'labels' has {key!r}: {shortened(content)}, expected "
                '"1": "spleen" (MSD) or "spleen": 1 (nnU-Net); fix it'
            )
        named.append((value, name))
    labels: dict[int, str] = {}
    for value, name in sorted(named):
        if not value:
            continue
        if value > most:
            raise UserError(f"{where}: label {name!r} has the value {value}, expected 1 to {most}; renumber it")
        if name == "ignore":
            raise UserError(f"{where}: the label 'ignore' is not supported; relabel its voxels and remove it")
        if not name.strip() or not name.isprintable():
            raise UserError(f"{where}: label {value} has the name {name!r}, expected printable text; rename it")
        if value in labels or name in labels.values():
            raise UserError(f"{where}: label {value} or the name {name!r} is declared twice; keep one of the two")
        labels[value] = name
    if not labels:
        raise UserError(f"{where}: 'labels' declares only background; add the labels to segment")
    return labels


def declared_channel(record: dict[str, Any], where: str) -> str | None:
    """Return the name of the only channel, such as "CT" or "MRI"; None if it is not declared.

    Raises:
        UserError: several channels are declared.
    """
    field = "channel_names" if "channel_names" in record else "modality"
    declared = record.get(field)
    if isinstance(declared, dict):
        declared = list(declared.values())
    channels = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(isinstance(name, str) for name in channels):
        raise UserError(
            f'{where}: {field!r} is {shortened(record[field])}, expected names such as {{"0": "CT"}}; fix it'
        )
    if len(channels) > 1:
        raise UserError(
            f"{where}: {field!r} names {len(channels)} channels ({shortened(', '.join(channels))}), expected one; make "
            "a dataset with one of them"
        )
    return channels[0] if channels else None


def declared_name(record: dict[str, Any], folder: str) -> str:
    """Return the dataset's name, or the name of its folder."""
    name = record.get("name")
    return name if isinstance(name, str) and name.strip() and name.isprintable() else folder


def declared_suffixes(record: dict[str, Any], where: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return nnU-Net's `file_ending` in lower case, or all known suffixes.

    Raises:
        UserError: the suffix is not known.
    """
    ending = record.get("file_ending")
    if ending is None:
        return known
    lower = ending.lower() if isinstance(ending, str) else ""
    if lower not in known:
        raise UserError(
            f"{where}: 'file_ending' is {shortened(ending)}, expected one of {', '.join(known)}; convert the images"
        )
    return (lower,)


def shortened(value: Any) -> str:
    """Return at most 83 characters of a value from a file, for messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _value(value: Any) -> int | None:
    """Return a label value, stored as a number or as digits; None if it is not one."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return int(value) if isinstance(value, str) and _VALUE.fullmatch(value) else None
