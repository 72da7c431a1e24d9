"""Finished cells, a file a walk through a volume, so that a sweep goes on where it was killed.

`cells/spec.json` says whose they are. A spec that only adds values to it goes on; any other is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.data.split_choice import absolute
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.summary import Row
from sam2_3dmed_jax.evaluation.sweep.entries import Entry
from sam2_3dmed_jax.evaluation.sweep.settings import FACTORS, Setting, settings_of
from sam2_3dmed_jax.volume.image_file import written_whole

FOLDER, SPEC, FORMAT = "cells", "spec.json", 1
_GROWING = ("checkpoints", "folds", "seeds", "design", "crossed", *FACTORS)  # judged by the cells that they make

Rows = dict[float, list[Row]]  # by threshold


class Cells:
    """The cells of a sweep in a folder."""

    def __init__(self, out: str | os.PathLike[str]):
        self._folder = Path(out, FOLDER)

    def claim(self, spec: SweepSpec, entries: Sequence[Entry], fingerprint: str) -> None:
        """Take the folder for a sweep, or go on with the one that is there.

        Args:
            spec: of the sweep.
            entries: its checkpoints.
            fingerprint: of the dataset.

        Raises:
            UserError: the folder holds another sweep, or cannot be written.
        """
        record = {
            "format": FORMAT,
            "spec": dataclasses.asdict(spec),
            "data": [absolute(spec.data), fingerprint],
            "checkpoints": {_name(entry): entry.digest for entry in entries},
        }
        record = json.loads(json.dumps(record))
        path = self._folder / SPEC
        if path.exists():
            try:
                differing = _differing(json.loads(path.read_text(encoding="utf-8")), record)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} cannot be read ({error}); choose another --out") from None
            if differing:
                raise UserError(
                    f"--out: {self._folder.parent} holds another sweep, which differs in {', '.join(differing)}; "
                    "choose another --out, or only add values, checkpoints, folds or seeds to it"
                )
        elif self._folder.parent.exists() and any(self._folder.parent.iterdir()):
            raise UserError(f"--out: {self._folder.parent} is not empty and holds no sweep; choose another folder")
        with written_whole(path, ".json") as part:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def get(self, entry: Entry, case: str, propagation: Setting) -> Rows:
        """The rows of a walk that are there, by threshold; {}: none, or a damaged file."""
        key = _key(entry, case, propagation)
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
            return {float(threshold): rows for threshold, rows in found["rows"]} if found["key"] == key else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def add(self, entry: Entry, case: str, propagation: Setting, rows: Rows) -> None:
        """Keep the rows of a walk, in the place of those that are there.

        Raises:
            UserError: the folder cannot be written.
        """
        key = _key(entry, case, propagation)
        with written_whole(self._file(key), ".json") as part:
            part.write_text(json.dumps({"key": key, "rows": sorted(rows.items())}), encoding="utf-8")

    def tidy(self) -> None:
        """Remove what killed processes left half-written; when all cells are there."""
        for part in self._folder.glob(".*.json"):
            with contextlib.suppress(OSError):
                part.unlink()

    def _file(self, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:24]}.json"


def _key(entry: Entry, case: str, propagation: Setting) -> dict[str, Any]:
    """What a walk is known by."""
    walk = dataclasses.asdict(propagation)
    del walk["threshold"]
    return {
        "model": entry.model,
        "checkpoint": absolute(entry.checkpoint),
        "fold": entry.fold,
        "seed": entry.seed,
        "case": case,
        **walk,
    }


def _name(entry: Entry) -> str:
    return f"{absolute(entry.checkpoint)} on fold {entry.fold}"


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields in which a sweep differs from the one that is there, but for added cells."""
    if old["format"] != new["format"]:
        return ["the version of this program that wrote it"]
    before, after = old["spec"], new["spec"]
    found = [name for name in after if name not in (*_GROWING, "data") and before.get(name) != after[name]]
    found += ["data"] if old["data"] != new["data"] else []
    for name, digest in old["checkpoints"].items():
        if name not in new["checkpoints"]:
            found.append(f"checkpoints (without {name})")
        elif new["checkpoints"][name] != digest:
            found.append(f"checkpoints ({name} was written anew)")
    if not {*settings_of(SweepSpec(**before))} <= {*settings_of(SweepSpec(**after))}:
        found += [name for name in ("design", "crossed", *FACTORS) if before[name] != after[name]]
    return found
