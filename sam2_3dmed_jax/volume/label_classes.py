"""Label sets as users write them, and label classes: named label values or unions of them, with their tolerance.

`1=pancreas,2=cancer,1+2=both` are three classes of two label values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sam2_3dmed_jax.errors import CHOICES, UserError, listed, naming
from sam2_3dmed_jax.volume.anatomy_codes import parse_label
from sam2_3dmed_jax.volume.label_layers import LabelLayers, mask_of_values

# mm, by the task's name; two public presets attribute them to Antonelli et al. 2022 (docs/explanation/method.md).
TASK_TOLERANCES = {"lung": 2.0, "pancreas": 5.0, "spleen": 3.0}
TOLERANCE = 3.0  # mm, where the task is none of these
Target = tuple[int, ...]  # the label values of an object that is prompted

_TUMOUR = re.compile(r"cancer|tumou?r|lesion", re.IGNORECASE)
_HOST = re.compile(r"pancreas|liver|kidney", re.IGNORECASE)  # organs whose tumours are inside of them


@dataclass(frozen=True)
class LabelSet:
    """Labels that are taken together, as the user wrote them."""

    values: tuple[int, ...]
    name: str  # after `=`; "": none was given
    text: str  # all of it, for messages


@dataclass(frozen=True)
class LabelClass:
    """One structure to score."""

    name: str
    values: tuple[int, ...]  # in the label map; several values form a union
    tolerance_mm: float = TOLERANCE  # of NSD
    tumour: bool = False  # lesions are counted too

    def mask(self, labels: np.ndarray | LabelLayers) -> np.ndarray:
        """Return a bool mask with the shape of the label map, or of labels that may overlap."""
        if isinstance(labels, LabelLayers):
            return labels.mask(self.values)
        return mask_of_values(labels, self.values)


def declared_classes(labels: Mapping[int, str]) -> list[LabelClass]:
    """Return the classes of a dataset: each label, and the union of an organ with the tumours inside it.

    The union is last. It exists if one label is a pancreas, liver or kidney and all others are tumours.
    """
    classes = [LabelClass(name, (value,), tumour=is_tumour(name)) for value, name in labels.items()]
    organs = [entry for entry in classes if not entry.tumour]
    if len(organs) == 1 and len(classes) > 1 and _HOST.search(organs[0].name):
        classes.append(LabelClass("+".join(entry.name for entry in classes), tuple(labels)))
    return classes


def parse_label_sets(text: str, names: Mapping[int, str], option: str) -> list[LabelSet]:
    """Read `1=spleen,2+3=lesions,cancer`, the one spelling of label sets in flags, fields and files of settings.

    Sets are separated by commas. A set is a label value, the name of a label or a union of these with plus signs, and
    may have a name after `=`.

    Args:
        text: as above.
        names: label value to name, where names are known; other values are accepted too.
        option: the flag or field, for messages.

    Raises:
        UserError: not a label, the background, or a label twice in one set.
    """
    values_of = {name: value for value, name in names.items()}
    sets: list[LabelSet] = []
    for part in text.split(","):
        key, _, name = (word.strip() for word in part.partition("="))
        words = [key] if key in values_of else [word.strip() for word in key.split("+")]
        labels = [str(values_of.get(word, word)) for word in words]
        if not all(re.fullmatch("[0-9]{1,9}", label) for label in labels):
            known = f"one of {listed(values_of, CHOICES)}" if values_of else "VALUE=NAME"
            raise UserError(f"{option}: '{part}' is neither a label value nor {known}; give some, such as 1=spleen,2+3")
        values = tuple(map(int, labels))
        if 0 in values:
            raise UserError(f"{option}: 0 is the background, in '{part}'; give label values, such as 1=spleen,2+3")
        if len(set(values)) < len(values):
            raise UserError(f"{option}: '{part}' repeats a label; give each once")
        sets.append(LabelSet(values, name, part))
    return sets


def class_sets(classes: Sequence[int | str], names: Mapping[int, str]) -> list[LabelSet]:
    """Return the label sets of `data.classes`, whose entries are label values or texts as `parse_label_sets` reads.

    Raises:
        UserError: as `parse_label_sets`.
    """
    return parse_label_sets(",".join(map(str, classes)), names, "data.classes") if classes else []


def parse_classes(text: str, declared: Mapping[int, str]) -> list[LabelClass]:
    """Read classes to score.

    Args:
        text: as `parse_label_sets`.
        declared: value to name, from the dataset; {} accepts any value.

    Raises:
        UserError: not a label, a label that the dataset lacks, or one name for two classes.
    """
    classes: list[LabelClass] = []
    for entry in parse_label_sets(text, declared, "--classes"):
        if declared and (unknown := [value for value in entry.values if value not in declared]):
            known = listed(sorted(declared), CHOICES)
            raise UserError(f"--classes: the dataset has no label {unknown[0]}; choose from {known}")
        with naming("--classes"):
            name = parse_label(entry.name).name if entry.name else ""
        name = name or "+".join(declared.get(value, str(value)) for value in entry.values)
        if name in {each.name for each in classes}:
            raise UserError(f"--classes: '{entry.text}' repeats the name {name}; give each once")
        classes.append(LabelClass(name, entry.values, tumour=len(entry.values) == 1 and is_tumour(name)))
    return classes


def parse_targets(text: str, names: Mapping[int, str], option: str = "--targets") -> list[Target]:
    """Read the label values of each object to prompt, such as `1+2,2`.

    Args:
        text: as `parse_label_sets`; names of sets are not used.
        names: label value to name, where names are known.
        option: the flag or field, for messages.

    Raises:
        UserError: not a label, or an object whose labels all belong to later objects.
    """
    targets = [entry.values for entry in parse_label_sets(text, names, option)]
    written_values(targets, option)
    return targets


def prompted_targets(classes: Sequence[LabelClass]) -> list[Target]:
    """Return the default objects to prompt; later objects are written over earlier ones.

    A class of one value is an object. In a union of an organ with its tumours, the first value is prompted together
    with the rest. So is a union with a value that is not scored alone. Other unions are only scored.
    """
    alone = {entry.values[0]: entry.tumour for entry in classes if len(entry.values) == 1}
    unions = {
        entry.values[0]: entry.values
        for entry in classes
        if len(entry.values) > 1 and all(alone.get(value, True) for value in entry.values[1:])
    }
    inner = [value for values in unions.values() if set(values) & set(alone) for value in values[1:]]
    singles = [(value,) for value in dict.fromkeys([*alone, *inner]) if value not in unions]
    return [*sorted(unions.values(), key=len, reverse=True), *singles]


def written_values(targets: Sequence[Target], option: str = "--targets") -> list[int]:
    """Return the label value that each object writes: its first value that no later object has.

    Args:
        targets: in the order in which they are written.
        option: the flag or field, for messages.

    Raises:
        UserError: an object has no such value.
    """
    painted = []
    for at, target in enumerate(targets):
        own = [value for value in target if value > 0 and not any(value in later for later in targets[at + 1 :])]
        if not own:
            words = "+".join(map(str, target))
            raise UserError(f"{option}: all labels of {words} belong to later objects; name larger ones first")
        painted.append(own[0])
    return painted


def with_tolerances(classes: Iterable[LabelClass], text: str | None, task: str = "") -> list[LabelClass]:
    """Return classes with the tolerance of their task, or with the one in `text`: `3.0`, or `liver=3,cancer=2`.

    Raises:
        UserError: not a length, or a class that is not scored.
    """
    default = next((mm for name, mm in TASK_TOLERANCES.items() if name in task.lower()), TOLERANCE)
    found = [replace(entry, tolerance_mm=default) for entry in classes]
    for part in text.split(",") if text else ():
        name, _, number = part.rpartition("=")
        try:
            tolerance = float(number)
        except ValueError:
            tolerance = math.nan
        if not 0 <= tolerance < math.inf:
            raise UserError(
                f"--tolerance-mm: '{part}' is not a length; give millimetres, such as 3.0 or cancer=2,liver=3"
            )
        if name.strip() not in {"", *(entry.name for entry in found)}:
            raise UserError(f"--tolerance-mm: class '{name}' is not scored; choose from {_names(found)}")
        named = name.strip() or None
        found = [replace(entry, tolerance_mm=tolerance) if named in (None, entry.name) else entry for entry in found]
    return found


def with_tumours(classes: Sequence[LabelClass], text: str | None) -> list[LabelClass]:
    """Return classes with the named ones marked as tumours; None decides by their names, `none` marks no class.

    Raises:
        UserError: a class that is not scored.
    """
    if text is None:
        return list(classes)
    named = [] if text.strip() == "none" else [name.strip() for name in text.split(",")]
    if unknown := set(named) - {entry.name for entry in classes}:
        raise UserError(f"--tumours: class '{min(unknown)}' is not scored; choose from {_names(classes)}")
    return [replace(entry, tumour=entry.name in named) for entry in classes]


def parse_remap(text: str | None) -> dict[int, int]:
    """Read `2=1,3+4=0`: label sets of a prediction, whose names are the values that replace theirs; 0: the background.

    Raises:
        UserError: another form, or a value twice.
    """
    remap: dict[int, int] = {}
    for entry in parse_label_sets(text, {}, "--remap") if text else ():
        if not re.fullmatch("[0-9]{1,9}", entry.name) or not remap.keys().isdisjoint(entry.values):
            raise UserError(
                f"--remap: '{entry.text}' is not LABELS=VALUE with labels that are given once; give some, such as "
                "2=1,3+4=1"
            )
        remap.update(dict.fromkeys(entry.values, int(entry.name)))
    return remap


def is_tumour(name: str) -> bool:
    """Return whether a label's name means a tumour."""
    return bool(_TUMOUR.search(name))


def _names(classes: Iterable[LabelClass]) -> str:
    return listed([entry.name for entry in classes], CHOICES)
