"""Finished cells of a sweep, one file per propagation, from which an interrupted sweep resumes.

`cells/spec.json` identifies the sweep. A spec that only adds values to it resumes; any other spec is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.data.split_choice import absolute_path
from sam2_3dmed_jax.data.split_files import first_ids
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.sweep.entries import Entry
from sam2_3dmed_jax.evaluation.sweep.factors import FACTORS, STORED, Setting, settings_of
from sam2_3dmed_jax.prompts.perturbation import OWN
from sam2_3dmed_jax.runtime.atomic_files import UNFINISHED, write_text
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtype
from sam2_3dmed_jax.runtime.folder_lock import is_lock
from sam2_3dmed_jax.runtime.hashing import sha256_of_json
from sam2_3dmed_jax.runtime.user_files import plain, read_json, typed

FOLDER, SPEC, FORMAT = "cells", "spec.json", 1
# Fields that may change if all earlier cells remain.
_GROWING = ("checkpoints", "folds", "seeds", "design", "crossed", *FACTORS)

RowsByThreshold = dict[float, list[ScoreRow]]


class Cells:
    """The cells of a sweep in a folder."""

    def __init__(self, out: str | os.PathLike[str]):
        self._folder = Path(out, FOLDER)

    def claim(
        self,
        spec: SweepSpec,
        entries: Sequence[Entry],
        fingerprint: str,
        files: Mapping[str, Any],
        compute_dtype: ComputeDtype,
    ) -> None:
        """Take the folder for a sweep, or resume the sweep in it.

        Args:
            spec: of the sweep.
            entries: its checkpoints.
            fingerprint: of the dataset.
            files: SHA-256 of the files of each case to score, as JSON values.
            compute_dtype: of all cells.

        Raises:
            UserError: the folder holds another sweep, or cannot be written.
        """
        record = {
            "format": FORMAT,
            "spec": dataclasses.asdict(spec),
            "data": [absolute_path(spec.data), fingerprint],
            "files": files,
            "compute_dtype": compute_dtype,
            "checkpoints": {_name(entry): entry.digest for entry in entries},
        }
        record = plain(record)
        path = self._folder / SPEC
        if os.path.lexists(path):
            if differing := _differing(_read_record(path), record):
                raise UserError(
                    f"--out: {self._folder.parent} holds another sweep, which differs in {listed(differing)}; "
                    "choose another --out, or only add values, checkpoints, folds or seeds to it"
                )
        elif self._folder.parent.exists() and not all(is_lock(path) for path in self._folder.parent.iterdir()):
            raise UserError(f"--out: {self._folder.parent} is not empty and contains no sweep; choose another folder")
        write_text(path, json.dumps(record, indent=2) + "\n")

    def get(self, entry: Entry, case: str, propagation: Setting) -> RowsByThreshold:
        """Return the stored rows of a propagation, by threshold; {} if the file is missing or damaged."""
        key = _key(entry, case, propagation)
        file = self._file(key)
        try:
            stored = typed(read_json(file, "", finite=False), _Cell, str(file), "", finite=False)
        except UserError:
            return {}
        return dict(stored.rows) if stored.key == plain(key) else {}

    def add(self, entry: Entry, case: str, propagation: Setting, rows: RowsByThreshold) -> None:
        """Store the rows of a propagation, replacing earlier ones.

        Raises:
            UserError: the folder cannot be written.
        """
        key = _key(entry, case, propagation)
        write_text(self._file(key), json.dumps({"key": key, "rows": sorted(rows.items())}))

    def tidy(self) -> None:
        """Remove temporary files of killed processes; call it when all cells are finished."""
        for part in self._folder.glob(f".*{UNFINISHED}"):
            with contextlib.suppress(OSError):
                part.unlink()

    def _file(self, key: Mapping[str, Any]) -> Path:
        return self._folder / f"{sha256_of_json(key)[:24]}.json"


@dataclasses.dataclass(frozen=True)
class _Cell:
    """The file of a propagation."""

    key: dict[str, Any]
    rows: list[tuple[float, list[ScoreRow]]]


@dataclasses.dataclass(frozen=True)
class _Record:
    """`spec.json`."""

    format: int
    spec: SweepSpec
    data: tuple[str, str]  # path and fingerprint
    checkpoints: dict[str, str]
    compute_dtype: str = "float32"  # the default of earlier versions
    files: dict[str, Any] = dataclasses.field(default_factory=dict)  # sweeps of version 0.1 have none


def _read_record(path: Path) -> dict[str, Any]:
    """Return `spec.json` as plain values, with the default of each field that is newer than the sweep.

    Raises:
        UserError: the file is damaged.
    """
    fix = "choose another --out"
    stored = typed(read_json(path, fix), dict[str, Any], str(path), fix)
    if stored.get("format") != FORMAT:
        return stored
    record: dict[str, Any] = plain(typed(stored, _Record, str(path), fix))
    return record


def _key(entry: Entry, case: str, propagation: Setting) -> dict[str, Any]:
    """Return the values that identify a propagation."""
    factors = dataclasses.asdict(propagation)
    del factors["threshold"]
    for name, value in (("prompt_of", OWN), ("memory_selection", STORED), ("corrections", 0)):
        if factors[name] == value:  # cells of sweeps of earlier versions do not name it
            del factors[name]
    return {
        "model": entry.model,
        "checkpoint": absolute_path(entry.checkpoint),
        "fold": entry.fold,
        "seed": entry.seed,
        "case": case,
        **factors,
    }


def _name(entry: Entry) -> str:
    return f"{absolute_path(entry.checkpoint)} on fold {entry.fold}"


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the fields in which a sweep differs from an earlier one, except for added cells."""
    if old.get("format") != new["format"]:
        return ["the version of this program that wrote it"]
    before, after = old["spec"], new["spec"]
    names = (name for name in after if name not in (*_GROWING, "data", "compute_dtype"))
    fields = [name for name in names if before.get(name) != after[name]]
    # What counts is the dtype that "auto" stood for, which was float32 by default in earlier versions.
    was, is_now = old["compute_dtype"], new["compute_dtype"]
    fields += [f"compute_dtype ({was} there, {is_now} here)"] if was != is_now else []
    fields += ["data"] if old["data"] != new["data"] else []
    known = old["files"]
    changed = [name for name, files in new["files"].items() if known.get(name, files) != files]
    fields += [f"data (the files of {first_ids(changed)})"] if changed else []
    for name, digest in old["checkpoints"].items():
        if name not in new["checkpoints"]:
            fields.append(f"checkpoints (without {name})")
        elif new["checkpoints"][name] != digest:
            fields.append(f"checkpoints ({name} was written anew)")
    if not {*settings_of(SweepSpec(**before))} <= {*settings_of(SweepSpec(**after))}:
        fields += [name for name in ("design", "crossed", *FACTORS) if before[name] != after[name]]
    return fields
