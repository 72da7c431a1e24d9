"""The folder of the cache: `features.json` says of what the features are, `cases/ID.json` that a case is done.

One folder holds the features of one encoder and one preprocessing. Its cases are those of one prepared dataset; each
is known by its entry in that dataset's index, which names its source files by hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.prepare.folder import write_whole, writing
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.record_files import OpenFiles
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import UNFINISHED
from sam2_3dmed_jax.training.features.shards import FeatureShard, Shapes

FORMAT = 1
INDEX, SHARDS, CASES = "features.json", "shards", "cases"
NEW = "not made yet, or of a case that changed"
ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's


@dataclass(frozen=True)
class FeatureKey:
    """What all features of a folder depend on."""

    encoder: str  # SHA-256 of its weights
    preset: str
    image_size: int
    compute_dtype: str
    window: str
    dataset: str  # its name
    prepared: dict[str, Any]  # the settings of `prepare`


@dataclass
class FeatureCache:
    """Features of cases. Threads may share it, and it can be pickled: files are opened where they are read."""

    path: str
    key: FeatureKey
    shapes: Shapes
    _open: OpenFiles[FeatureShard] = field(default_factory=OpenFiles, repr=False, compare=False)

    def read(self, case: CaseEntry, slices: Sequence[int], room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`embedding`, `stride8` and `stride4`, bfloat16 `[room, ...]`: of the slices, then zeros.

        Raises:
            UserError: the shard is damaged.
        """
        shard = self._open.get(case.id, lambda: FeatureShard(self.shard(case), case.shape[0], self.shapes))
        return shard.read(slices, room)

    def shard(self, case: CaseEntry) -> Path:
        """The file of a case's features."""
        return self._file(SHARDS, case, "arrayrecord")

    def lacks(self, case: CaseEntry) -> str:
        """Why the features of a case are to be made: `NEW`, or what became of its shard; "" if they are there."""
        try:
            record = json.loads(self._file(CASES, case, "json").read_text())
            ours, size = record["case"] == _identity(case), int(record["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return NEW
        if not ours:
            return NEW
        shard = self.shard(case)
        found = shard.stat().st_size if shard.is_file() else 0
        return "" if found == size else f"{shard} has {found} bytes of {size}"

    def finish(self, case: CaseEntry, size: int) -> None:
        """Say that a case is done, and its shard has `size` bytes."""
        write_whole(self._file(CASES, case, "json"), json.dumps({"case": _identity(case), "bytes": size}))

    def check(self) -> None:
        """See that the folder may be filled: it is new or empty, or holds features of the same key.

        Raises:
            UserError: it holds something else, or features of another encoder, preprocessing or dataset.
        """
        if "://" in self.path:
            raise UserError(f"data.features: {self.path} is no local folder, as shards need; give one")
        folder, file = Path(self.path), Path(self.path, INDEX)
        if not file.exists():
            ours = not folder.exists() or (folder.is_dir() and all(p.suffix == UNFINISHED for p in folder.iterdir()))
            if not ours:
                raise UserError(f"data.features: {folder} holds something else; give a new or an empty folder")
            return
        try:
            record = json.loads(file.read_text())
            version, theirs = record["format"], dict(record["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} cannot be read ({error!r}); delete {folder} and run this again") from error
        if version != FORMAT:
            raise UserError(f"{file} has format {version}, this version writes {FORMAT}; give another data.features")
        if different := _differences(theirs, asdict(self.key)):
            raise UserError(
                f"data.features: {folder} holds features of other settings ({'; '.join(different)}); give another "
                "folder, or delete it"
            )

    def claim(self) -> None:
        """Make the folder, and remove what runs that died left unfinished.

        Raises:
            UserError: it cannot be written.
        """
        with writing(Path(self.path)):
            for name in (SHARDS, CASES):
                Path(self.path, name).mkdir(parents=True, exist_ok=True)
            for path in Path(self.path).rglob(f".*{UNFINISHED}"):
                with contextlib.suppress(FileNotFoundError):  # another run has finished it, or removed it too
                    if time.time() - path.stat().st_mtime > ABANDONED:
                        path.unlink()
        write_whole(Path(self.path, INDEX), json.dumps({"format": FORMAT, "key": asdict(self.key)}, indent=1) + "\n")

    def _file(self, folder: str, case: CaseEntry, suffix: str) -> Path:
        if Path(case.id).name != case.id:
            raise UserError(f"data.path: its index names a case '{case.id}', which is no file name; prepare it again")
        return Path(self.path, folder, f"{case.id}.{suffix}")


def _identity(case: CaseEntry) -> str:
    return hashlib.sha256(json.dumps(asdict(case), sort_keys=True).encode()).hexdigest()


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Each field that differs, and how; of hashes the beginning."""
    ours = json.loads(json.dumps(ours))

    def shown(record: dict[str, Any], name: str) -> str:
        value = record.get(name)
        return str(value)[:12] if name == "encoder" else json.dumps(value)

    return [
        f"{name} is {shown(theirs, name)} there and {shown(ours, name)} here"
        for name in [*ours, *sorted(theirs.keys() - ours.keys())]
        if theirs.get(name) != ours.get(name)
    ]
