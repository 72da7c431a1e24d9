"""A prepared dataset on disk: `index.json`, and `shards/ID.arrayrecord` for each case.

The index says what clips are chosen by (areas, positions), so that choosing reads no slice. `prepare` writes it last:
a folder with an index is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from etils import epath

from sam2_3dmed_jax.data.datasets import PREPARED as INDEX
from sam2_3dmed_jax.data.record_files import OpenFiles, damaged
from sam2_3dmed_jax.data.records import MEND, Shard
from sam2_3dmed_jax.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class CaseEntry:
    """What the index says of a case. Arrays are tuples, as JSON keeps them."""

    id: str
    shard: str  # path inside the dataset
    bytes: int  # of the shard
    shape: tuple[int, int, int]  # (D, H, W), canonical
    spacing: tuple[float, float, float]  # (dz, dy, dx), mm
    affine: tuple[tuple[float, ...], ...]  # 4 x 4: index (d, h, w, 1) to RAS millimetres
    orientation: str  # of the source file's axes, such as "LPS": the directions in which i, j, k grow
    modality: str  # DICOM's word
    slope: float  # value = slope * stored + intercept; 1 and 0 for CT, which is stored in HU
    intercept: float
    areas: dict[int, tuple[int, ...]]  # each label value that occurs, to its pixels on each slice [D]
    source: dict[str, Any]  # image and label: file name, bytes, SHA-256

    def positions_mm(self) -> np.ndarray:
        """`[D]` float32: distance of each slice from the first, growing towards superior."""
        return (np.arange(self.shape[0]) * self.spacing[0]).astype(np.float32)


@dataclass
class PreparedDataset:
    """Cases, sorted by id. Threads may share it, and it can be pickled: files are opened where they are read."""

    path: str
    name: str
    labels: dict[int, str]  # label value to name, without the background
    settings: dict[str, Any]  # of `prepare`
    source: dict[str, Any]  # the dataset it was made from: `ids`, `fingerprint`, licence and the like
    cases: tuple[CaseEntry, ...]
    _shards: OpenFiles[Shard] = field(default_factory=OpenFiles, repr=False, compare=False)

    @property
    def ids(self) -> list[str]:
        """Of all cases of the source, those that were refused too; splits are made of these."""
        return list(self.source["ids"])

    @property
    def fingerprint(self) -> str:
        """Of the source, as `msd.fingerprint` gives it."""
        return str(self.source["fingerprint"])

    def read(self, case: CaseEntry, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 `[n, H, W]` (HU if CT) and labels uint8 `[n, H, W]` of n slices.

        Raises:
            UserError: the shard is damaged.
        """
        shard = self._shards.get(case.id, lambda: Shard(os.path.join(self.path, case.shard), case.shape))
        stored, labels = shard.read(slices)
        values = stored.astype(np.float32)
        if (case.slope, case.intercept) != (1.0, 0.0):
            values = values * np.float32(case.slope) + np.float32(case.intercept)
        return values, labels


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a prepared dataset."""
    return (epath.Path(path) / INDEX).exists()


def write_index(dataset: PreparedDataset) -> None:
    """Write `index.json` under a temporary name, then rename."""
    file = epath.Path(dataset.path) / INDEX
    record = {
        "format": FORMAT,
        "name": dataset.name,
        "labels": dataset.labels,
        "settings": dataset.settings,
        "source": dataset.source,
        "cases": [asdict(case) for case in dataset.cases],
    }
    temporary = file.parent / f".{INDEX}.tmp"
    temporary.write_text(json.dumps(record))
    temporary.replace(file)


def read_prepared(path: str | os.PathLike[str]) -> PreparedDataset:
    """Read the index, and check that each shard is there and whole in size.

    Raises:
        UserError: no prepared dataset at `path`, one of another version, or shards that are missing or cut.
    """
    root = epath.Path(path)
    file = root / INDEX
    if not file.exists():
        raise UserError(
            f"{path} holds no prepared dataset ({INDEX}); make one with `sam2-3dmed prepare DATASET {path}`"
        )
    try:
        record = json.loads(file.read_text())
        version = record["format"]
        if version == FORMAT:
            cases = tuple(entry_from_json(entry) for entry in record["cases"])
            labels = {int(value): str(name) for value, name in record["labels"].items()}
            dataset = PreparedDataset(str(path), record["name"], labels, record["settings"], record["source"], cases)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is no index of a prepared dataset ({error!r}); run `sam2-3dmed prepare` again"
        ) from error
    if version != FORMAT:
        raise UserError(f"{file} has format {version}, this version reads {FORMAT}; prepare the dataset again")
    for case in dataset.cases:
        shard = root / case.shard
        if not shard.exists():
            raise UserError(f"{shard} is missing; run `sam2-3dmed prepare` again, which writes it anew")
        if (size := shard.stat().length) != case.bytes:
            raise UserError(damaged(shard, f"it has {size} bytes of {case.bytes}", MEND))
    return dataset


def entry_from_json(record: dict[str, Any]) -> CaseEntry:
    """The inverse of `dataclasses.asdict` after JSON."""
    d, h, w = record["shape"]
    dz, dy, dx = record["spacing"]
    return CaseEntry(
        **{
            **record,
            "shape": (d, h, w),
            "spacing": (dz, dy, dx),
            "affine": tuple(tuple(row) for row in record["affine"]),
            "areas": {int(value): tuple(pixels) for value, pixels in record["areas"].items()},
        }
    )
