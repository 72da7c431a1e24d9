"""Data of a run, `data.json` in its folder: the content of each case, and the changes that the user accepted.

A run of version 0.1 has no such file; only the ids of its cases are known, from `split.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from sam2_3dmed_jax.config import Range
from sam2_3dmed_jax.data.case_content import RecordedCase, recorded_to_json
from sam2_3dmed_jax.data.prepared import MAX_BYTES, PreparedDataset
from sam2_3dmed_jax.data.split_files import first_ids
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.user_files import read_json, shown, typed

DATA_FILE = "data.json"
FORMAT = 1


@dataclass(frozen=True)
class AcceptedChange:
    """A change of the data with which the user resumed the run."""

    step: Annotated[int, Range(0, 10**18)]  # the newest checkpoint at that time
    description: str
    before: dict[str, RecordedCase]  # training and inner cases that were changed or removed, as they were


@dataclass(frozen=True)
class RunData:
    """The data of a run."""

    labels: tuple[int, ...] | None  # declared values; None: unknown
    cases: dict[str, RecordedCase | None]  # all cases of the dataset; None: refused by `prepare`
    accepted: tuple[AcceptedChange, ...] = field(default=())


@dataclass(frozen=True)
class DataChanges:
    """Differences between two states of a dataset; ids are sorted."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    labels: bool  # whether other label values are declared
    renamed: dict[str, str]  # new to old id, of added and removed cases with the same content

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.changed or self.added or self.removed or self.labels)

    def __str__(self) -> str:
        """Return what differs, with at most three ids each."""
        groups = {"changed": self.changed, "added": self.added, "removed": self.removed}
        parts = [f"{len(ids)} {word} ({first_ids(ids)})" for word, ids in groups.items() if ids]
        return ", ".join([*parts, *(["other declared labels"] if self.labels else [])])


def data_of(dataset: PreparedDataset) -> RunData:
    """Return the data of a prepared dataset."""
    prepared = {case.id: case.recorded for case in dataset.cases}
    return RunData(tuple(sorted(dataset.labels)), {case_id: prepared.get(case_id) for case_id in dataset.ids})


def data_of_split(split: Split, ids: Iterable[str] = ()) -> RunData:
    """Return the data of a run of version 0.1, of which only the ids in its split are known.

    Args:
        split: of the run.
        ids: further cases that the run may have had, because a file of splits need not list all cases.
    """
    return RunData(None, {case_id: RecordedCase() for case_id in (*split.train, *split.val, *split.test, *ids)})


def changes_between(before: RunData, now: RunData) -> DataChanges:
    """Return the differences between two states of a dataset; what is unknown counts as unchanged."""
    added = [name for name, case in now.cases.items() if case and _lacks(before.cases, name, case)]
    removed = [name for name, case in before.cases.items() if case and _lacks(now.cases, name, case)]
    common = before.cases.keys() & now.cases.keys()
    pairs = {name: (before.cases[name], now.cases[name]) for name in common}
    changed = [name for name, (old, new) in pairs.items() if old and new and old.equals(new) is False]
    renamed = {
        new: old
        for new in added
        for old in removed
        if (a := now.cases[new]) and (b := before.cases[old]) and a.equals(b)
    }
    labels = None not in (before.labels, now.labels) and before.labels != now.labels
    return DataChanges(tuple(sorted(changed)), tuple(sorted(added)), tuple(sorted(removed)), labels, renamed)


def with_accepted(
    before: RunData, now: RunData, changes: DataChanges, description: str, split: Split, step: int
) -> RunData:
    """Return the record of a run that resumes with changed data.

    Args:
        before: record of the run.
        now: present data.
        changes: between them.
        description: of the changes, in words.
        split: of the run until now.
        step: newest checkpoint.
    """
    old = {name: before.cases[name] for name in (*changes.changed, *changes.removed) if name in split.train + split.val}
    trained = {name: case for name, case in old.items() if case}
    return RunData(now.labels, now.cases, (*before.accepted, AcceptedChange(step, description, trained)))


def continued_split(before: Split, drawn: Split, renamed: Mapping[str, str], patients: Mapping[str, str]) -> Split:
    """Return the split of a run that resumes with added or removed cases: earlier cases keep their side.

    Without this, a new draw would hold out cases that the weights were fitted to.

    Args:
        before: split of the run until now.
        drawn: split that the settings give for the present cases.
        renamed: new to old id of the same case.
        patients: case to patient, or {}; added cases of a known patient join the patient's other cases.

    Raises:
        UserError: no training case or no held-out case is left.
    """
    sides = _sides(before)
    of_patient = {patients[name]: side for name, side in sides.items() if name in patients}
    now = {
        name: sides.get(renamed.get(name, name)) or of_patient.get(patients.get(name, "")) or side
        for name, side in _sides(drawn).items()
    }
    train, val, test = (tuple(sorted(name for name in now if now[name] == side)) for side in ("train", "val", "test"))
    if not train or not test:
        raise UserError(
            f"the changed dataset has no {'held-out' if train else 'training'} case of the run left; choose another "
            "--out"
        )
    return Split(train, val, test)


def write_run_data(path: str | os.PathLike[str], data: RunData) -> None:
    """Write `data.json`, unless it has this content.

    Raises:
        UserError: it cannot be written.
    """
    record = {
        "format": FORMAT,
        "labels": data.labels,
        "cases": {name: recorded_to_json(case) for name, case in sorted(data.cases.items())},
        "accepted": [
            {
                "step": change.step,
                "description": change.description,
                "before": {name: recorded_to_json(case) for name, case in sorted(change.before.items())},
            }
            for change in data.accepted
        ],
    }
    write_text(path, json.dumps(record, indent=1) + "\n", keep_unchanged=True)


def read_run_data(path: str | os.PathLike[str]) -> RunData | None:
    """Read `data.json`; None if it does not exist.

    Raises:
        UserError: it cannot be read, or has another version.
    """
    if not os.path.lexists(path):
        return None
    fix = "restore a copy of it, or start another run"
    record = typed(read_json(path, fix, MAX_BYTES), dict[str, Any], str(path), fix)
    if (version := record.pop("format", None)) != FORMAT:
        raise UserError(
            f"{path} has format {shown(version)}, expected {FORMAT}; use the version of this program that wrote it"
        )
    return typed(record, RunData, str(path), fix)


def _lacks(cases: Mapping[str, RecordedCase | None], name: str, other: RecordedCase) -> bool:
    """Return whether a dataset lacks a case, or refused it; of refused cases of version 0.1 only the id is known."""
    return cases.get(name) is None and not (name in cases and other == RecordedCase())


def _sides(split: Split) -> dict[str, str]:
    return {
        name: side for side, part in (("train", split.train), ("val", split.val), ("test", split.test)) for name in part
    }
