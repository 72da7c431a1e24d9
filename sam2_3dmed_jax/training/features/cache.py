"""Folder of the feature cache: `features.json` records its settings, `cases/ID.json` that a case is complete.

One folder holds the features of one encoder, one preprocessing and one prepared dataset. A case is identified by its
entry in the dataset's index, which contains the hashes of its source files.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.prepared import PreparedCase, PrepareSettings
from sam2_3dmed_jax.data.record_files import OpenFileCache
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.runtime.atomic_files import UNFINISHED, write_errors, write_text
from sam2_3dmed_jax.runtime.folder_lock import is_lock
from sam2_3dmed_jax.runtime.hashing import sha256_of_json
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.runtime.user_files import plain, read_json, shown, typed
from sam2_3dmed_jax.training.features.shards import FeatureShard, Shapes

FORMAT = 1
INDEX, SHARDS, CASES = "features.json", "shards", "cases"
NEW = "not encoded yet, or a case that has changed"
ABANDONED = 3600.0  # seconds after which no run still writes an unfinished file


@dataclass(frozen=True)
class FeatureKey:
    """The settings that all features of a folder depend on."""

    encoder: str  # SHA-256 of its weights
    preset: str
    image_size: int
    compute_dtype: str
    window: str
    dataset: str  # its name
    prepared: PrepareSettings


@dataclass(frozen=True)
class _Index:
    """`features.json`; the key of another version may have other members."""

    format: int
    key: dict[str, Any]


@dataclass(frozen=True)
class _CaseRecord:
    """The file that marks a case as complete."""

    case: str  # `_identity`
    bytes: int  # of its shard


@dataclass
class FeatureCache:
    """Features of cases. Threads may share it, and it can be pickled: files are opened at the first read."""

    path: str
    key: FeatureKey
    shapes: Shapes
    _open: OpenFileCache[FeatureShard] = field(default_factory=OpenFileCache, repr=False, compare=False)

    def read(self, case: PreparedCase, slices: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `embedding`, `stride8` and `stride4` of slices, bfloat16 `[length, ...]`, padded with zeros.

        Raises:
            UserError: the shard is damaged.
        """
        shard = self._open.get(case.id, lambda: FeatureShard(self.shard(case), case.shape[0], self.shapes))
        return shard.read(slices, length)

    def shard(self, case: PreparedCase) -> Path:
        """Return the file of a case's features."""
        return self._file(SHARDS, case, "arrayrecord")

    def missing_reason(self, case: PreparedCase) -> str:
        """Return why the features of a case must be computed: `NEW` or the damage of its shard; "" if complete."""
        file = self._file(CASES, case, "json")
        try:
            record = typed(read_json(file, ""), _CaseRecord, str(file), "")
        except UserError:
            return NEW
        if record.case != _identity(case):
            return NEW
        shard = self.shard(case)
        actual = shard.stat().st_size if shard.is_file() else 0
        return "" if actual == record.bytes else f"{shard} has {actual} bytes of {record.bytes}"

    def finish(self, case: PreparedCase, size: int) -> None:
        """Record that a case is complete and that its shard has `size` bytes."""
        record = json.dumps({"case": _identity(case), "bytes": size})
        write_text(self._file(CASES, case, "json"), record, keep_unchanged=True)

    def check(self) -> None:
        """Check that the folder may be filled: it is new or empty, or holds features with the same key.

        Raises:
            UserError: it holds something else, or features of another encoder, preprocessing or dataset.
        """
        check_local(self.path)
        folder, file = Path(self.path), Path(self.path, INDEX)
        if not file.exists():
            # `claim` may have been killed before it wrote the record.
            files = [] if not folder.exists() else [*folder.iterdir()] if folder.is_dir() else [folder]
            if not all(path.suffix == UNFINISHED or is_lock(path) for path in files):
                raise UserError(f"data.features: {folder} holds something else; give a new or an empty folder")
            return
        fix = f"delete {folder} and run this again"
        record = typed(read_json(file, fix), _Index, str(file), fix)
        if record.format != FORMAT:
            raise UserError(
                f"{file} has format {shown(record.format)}, this version writes {FORMAT}; give another data.features"
            )
        if different := _differences(record.key, asdict(self.key)):
            raise UserError(
                f"data.features: {folder} holds features of other settings ({listed(different, separator='; ')}); "
                "give another folder, or delete it"
            )

    def claim(self) -> None:
        """Create the folder, and remove unfinished files of killed runs.

        Raises:
            UserError: it cannot be written.
        """
        with write_errors(Path(self.path)):
            for name in (SHARDS, CASES):
                Path(self.path, name).mkdir(parents=True, exist_ok=True)
            for path in Path(self.path).rglob(f".*{UNFINISHED}"):
                with contextlib.suppress(FileNotFoundError):  # another run has finished it, or removed it too
                    if time.time() - path.stat().st_mtime > ABANDONED:
                        path.unlink()
        record = json.dumps({"format": FORMAT, "key": asdict(self.key)}, indent=1) + "\n"
        write_text(Path(self.path, INDEX), record, keep_unchanged=True)

    def _file(self, folder: str, case: PreparedCase, suffix: str) -> Path:
        if Path(case.id).name != case.id:
            raise UserError(
                f"data.path: its index names a case '{case.id}', which is not a file name; prepare it again"
            )
        return Path(self.path, folder, f"{case.id}.{suffix}")


def _identity(case: PreparedCase) -> str:
    """Return a hash that changes with the content of a case; without content, it is the hash of version 0.1."""
    record = asdict(case)
    if case.content is None:
        del record["content"]
    return sha256_of_json(record)


def _differences(stored: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return each field that differs with both values; hashes are cut."""
    expected = plain(expected)

    def shown(record: dict[str, Any], name: str) -> str:
        value = record.get(name)
        return str(value)[:12] if name == "encoder" else json.dumps(value)

    return [
        f"{name} is {shown(stored, name)} there and {shown(expected, name)} here"
        for name in [*expected, *sorted(stored.keys() - expected.keys())]
        if stored.get(name) != expected.get(name)
    ]
