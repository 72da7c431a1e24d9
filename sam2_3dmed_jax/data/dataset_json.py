"""`dataset.json` as MSD and nnU-Net (v1 and v2) write it: labels, the one channel, the name.

MSD and nnU-Net v1 map values to names, `{"1": "spleen"}`; v2 maps names to values, `{"spleen": 1}`. What this project
cannot segment is refused: regions (a name with several values), the label `ignore`, and several channels.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sam2_3dmed_jax.errors import UserError

MAX_LABEL = 255  # labels are kept as uint8
_VALUE = re.compile("[0-9]{1,9}")


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it is no JSON, or no object.
    """
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); mend it, or unpack the dataset again") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is no description of a dataset, expected a JSON object; unpack the dataset again")
    return record


def labels_of(record: dict[str, Any], where: str) -> dict[int, str]:
    """Label value to name, sorted by value, without the background.

    Raises:
        UserError: no labels, or some that cannot be segmented.
    """
    declared = record.get("labels")
    if not isinstance(declared, dict):
        raise UserError(f'{where}: \'labels\' is missing or no object; declare them, such as {{"1": "spleen"}}')
    # {"1": 1} is a name and its value: MSD's names are text.
    msd = all(map(_VALUE.fullmatch, declared)) and not all(type(name) is int for name in declared.values())
    named = []
    for key, content in declared.items():
        if isinstance(content, list):
            raise UserError(
                f"{where}: label {key!r} is a region {short(content)}, expected one value a name; regions are not "
                "supported, so declare the values they are made of"
            )
        value, name = (_value(key), content) if msd else (_value(content), key)
        if value is None or not isinstance(name, str):
            raise UserError(
                f"{where}: 'labels' has {key!r}: {short(content)}, expected "
                '"1": "spleen" (MSD) or "spleen": 1 (nnU-Net); mend it'
            )
        named.append((value, name))
    labels: dict[int, str] = {}
    for value, name in sorted(named):
        if not value:
            continue
        if value > MAX_LABEL:
            raise UserError(f"{where}: label {name!r} has the value {value}, expected 1 to {MAX_LABEL}; renumber it")
        if name == "ignore":
            raise UserError(f"{where}: the label 'ignore' is not supported; relabel its voxels and take it out")
        if not name.strip() or not name.isprintable():
            raise UserError(f"{where}: label {value} has the name {name!r}, expected printable text; give it one")
        if value in labels or name in labels.values():
            raise UserError(f"{where}: label {value} or the name {name!r} is declared twice; keep one of the two")
        labels[value] = name
    if not labels:
        raise UserError(f"{where}: 'labels' declares nothing but background, so there is nothing to segment; add some")
    return labels


def channel_of(record: dict[str, Any], where: str) -> str | None:
    """The name of the one channel, such as "CT" or "MRI"; None if the file does not say.

    Raises:
        UserError: several channels.
    """
    field = "channel_names" if "channel_names" in record else "modality"
    declared = record.get(field)
    if isinstance(declared, dict):
        declared = list(declared.values())
    channels = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(isinstance(name, str) for name in channels):
        raise UserError(
            f'{where}: {field!r} holds {short(record[field])}, expected names such as {{"0": "CT"}}; mend it'
        )
    if len(channels) > 1:
        raise UserError(
            f"{where}: {field!r} names {len(channels)} channels ({short(', '.join(channels))}), expected one; make a "
            "dataset of one of them"
        )
    return channels[0] if channels else None


def name_of(record: dict[str, Any], folder: str) -> str:
    """The dataset's name, or that of its folder."""
    name = record.get("name")
    return name if isinstance(name, str) and name.strip() and name.isprintable() else folder


def ending_of(record: dict[str, Any], where: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """nnU-Net's `file_ending`, or all known ones.

    Raises:
        UserError: an ending that is not known.
    """
    ending = record.get("file_ending")
    if ending is None:
        return known
    if ending not in known:
        raise UserError(
            f"{where}: 'file_ending' is {short(ending)}, expected one of {', '.join(known)}; convert the images"
        )
    return (ending,)


def short(value: Any) -> str:
    """A stranger's value in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _value(value: Any) -> int | None:
    """A label value, which JSON may hold as a number or as digits; None if it is none."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return int(value) if isinstance(value, str) and _VALUE.fullmatch(value) else None
