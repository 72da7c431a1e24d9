"""Prepared datasets on disk: `index.json`, and `shards/ID.arrayrecord` for each case.

The index contains areas and positions, so that choosing clips reads no slices. It is written last: a folder with an
index is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np

from sam2_3dmed_jax.data.case_content import CaseContent, RecordedCase, content_from_json
from sam2_3dmed_jax.data.record_files import OpenFileCache, damaged_file_message
from sam2_3dmed_jax.data.shards import REPAIR_HINT, Shard
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import write_text

INDEX = "index.json"
FORMAT = 1  # of the index; other versions are refused


class SourceFile(TypedDict):
    """An image file that a case was prepared from."""

    file: str  # name without folder
    bytes: int
    sha256: str


class CaseSource(TypedDict, total=False):
    """The files that a case was prepared from."""

    image: SourceFile
    label: SourceFile


class DatasetSource(TypedDict, total=False):
    """The dataset of image files that was prepared. The texts are copied from its `dataset.json`."""

    ids: Required[list[str]]  # all cases, with refused ones
    fingerprint: Required[str]  # `datasets.dataset_fingerprint`
    archive: str  # name of the .tar
    md5: str  # of the archive, if the MD5 of an archive of this name is published
    description: Any
    reference: Any
    licence: Any
    license: Any
    release: Any
    relase: Any  # spelled like this in MSD's Task07


class PrepareSettings(TypedDict, total=False):
    """`PrepareConfig` as JSON."""

    spacing: list[float | None]
    modality: str  # if it was given
    keep_empty: bool  # if it was given


@dataclass(frozen=True)
class PreparedCase:
    """The entry of a case in the index."""

    id: str
    shard: str  # path relative to the dataset
    bytes: int  # size of the shard
    shape: tuple[int, int, int]  # (D, H, W), canonical
    spacing: tuple[float, float, float]  # (dz, dy, dx), mm
    affine: tuple[tuple[float, ...], ...]  # 4 x 4: index (d, h, w, 1) to RAS millimetres
    orientation: str  # directions of the axes i, j, k of the source file, such as "LPS"
    modality: str  # DICOM's Modality
    slope: float  # value = slope * stored + intercept; 1 and 0 for CT, stored in HU
    intercept: float
    areas: dict[int, tuple[int, ...]]  # voxels of each label value on each slice [D]
    source: CaseSource
    content: CaseContent | None = None  # None: prepared by a version before 0.2

    @property
    def recorded(self) -> RecordedCase:
        """Content and files of the case, for comparison with the record of a run."""
        image, label = (self.source[part]["sha256"] if part in self.source else "" for part in ("image", "label"))
        return RecordedCase(self.content, image, label)

    def positions_mm(self) -> np.ndarray:
        """Return the distance of each slice from the first in mm, `[D]` float32, ascending towards superior."""
        return (np.arange(self.shape[0]) * self.spacing[0]).astype(np.float32)


@dataclass
class PreparedDataset:
    """Index and shards of a dataset; cases are sorted by id.

    Can be pickled and shared between threads: shards are opened when they are read.
    """

    path: str
    name: str
    labels: dict[int, str]  # label value to name, without the background
    settings: PrepareSettings
    source: DatasetSource
    cases: tuple[PreparedCase, ...]
    _shards: OpenFileCache[Shard] = field(default_factory=OpenFileCache, repr=False, compare=False)

    @property
    def ids(self) -> list[str]:
        """Return the ids of all cases of the source, with refused ones; splits are drawn from these."""
        return list(self.source["ids"])

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the source (`datasets.dataset_fingerprint`)."""
        return self.source["fingerprint"]

    def read(self, case: PreparedCase, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read values float32 `[n, H, W]` (HU for CT) and labels uint8 `[n, H, W]` of n slices.

        Raises:
            UserError: the shard is damaged.
        """
        stored, labels = self.read_stored(case, slices)
        values = stored.astype(np.float32)
        if (case.slope, case.intercept) != (1.0, 0.0):
            values = values * np.float32(case.slope) + np.float32(case.intercept)
        return values, labels

    def read_stored(self, case: PreparedCase, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read stored values int16 `[n, H, W]`, of which `slope * stored + intercept` are the values, and labels.

        Raises:
            UserError: the shard is damaged.
        """
        shard = self._shards.get(case.id, lambda: Shard(os.path.join(self.path, case.shard), case.shape))
        return shard.read(slices)


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder contains a prepared dataset."""
    return (Path(path) / INDEX).exists()


def write_index(dataset: PreparedDataset) -> None:
    """Write `index.json`, which is complete or does not exist."""
    record = {
        "format": FORMAT,
        "name": dataset.name,
        "labels": dataset.labels,
        "settings": dataset.settings,
        "source": dataset.source,
        "cases": [asdict(case) for case in dataset.cases],
    }
    write_text(Path(dataset.path, INDEX), json.dumps(record))


def read_prepared(path: str | os.PathLike[str]) -> PreparedDataset:
    """Read the index, and check that each shard exists and has the recorded size.

    Raises:
        UserError: `path` is not a prepared dataset, has another version, or shards are missing or truncated.
    """
    root = Path(path)
    file = root / INDEX
    if not file.exists():
        raise UserError(
            f"{path} is not a prepared dataset (no {INDEX}); create one with `sam2-3dmed prepare DATASET {path}`"
        )
    try:
        record = json.loads(file.read_text())
        version = record["format"]
        if version == FORMAT:
            cases = tuple(case_from_json(entry) for entry in record["cases"])
            labels = {int(value): str(name) for value, name in record["labels"].items()}
            dataset = PreparedDataset(str(path), record["name"], labels, record["settings"], record["source"], cases)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not an index of a prepared dataset ({error!r}); run `sam2-3dmed prepare` again"
        ) from error
    if version != FORMAT:
        raise UserError(f"{file} has format {version}, expected {FORMAT}; run `sam2-3dmed prepare` again")
    for case in dataset.cases:
        shard = root / case.shard
        if not shard.exists():
            raise UserError(f"{shard} is missing; run `sam2-3dmed prepare` again, which writes it again")
        if (size := shard.stat().st_size) != case.bytes:
            raise UserError(damaged_file_message(shard, f"it has {size} bytes of {case.bytes}", REPAIR_HINT))
    return dataset


def case_from_json(record: dict[str, Any]) -> PreparedCase:
    """Invert `dataclasses.asdict` followed by JSON."""
    d, h, w = record["shape"]
    dz, dy, dx = record["spacing"]
    return PreparedCase(
        **{
            **record,
            "shape": (d, h, w),
            "spacing": (dz, dy, dx),
            "affine": tuple(tuple(row) for row in record["affine"]),
            "content": content_from_json(record.get("content")),
            "areas": {int(value): tuple(pixels) for value, pixels in record["areas"].items()},
        }
    )
