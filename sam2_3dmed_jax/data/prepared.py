"""Prepared datasets on disk: `index.json`, and `shards/ID.arrayrecord` for each case.

The index contains areas and positions, so that choosing clips reads no slices. It is written last: a folder with an
index is complete.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Required

import numpy as np
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from sam2_3dmed_jax.config import Range
from sam2_3dmed_jax.data.case_content import Affine, CaseContent, RecordedCase
from sam2_3dmed_jax.data.record_files import OpenFileCache, damaged_file_message
from sam2_3dmed_jax.data.shards import REPAIR_HINT, Shard
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.user_files import read_json, shown, typed

INDEX = "index.json"
MAX_VOXELS = 2**34  # of a case
MAX_BYTES = 1 << 30  # of the index: 5 numbers per slice and label of 100,000 volumes
_AGAIN = "run `sam2-3dmed prepare` again"
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

    id: str  # a file name
    shard: str  # path relative to the dataset
    bytes: Annotated[int, Range(0, 2**53)]  # size of the shard
    shape: Annotated[tuple[int, int, int], Range(1, 65535)]  # (D, H, W), canonical
    spacing: Annotated[tuple[float, float, float], Range(1e-6, 1e6)]  # (dz, dy, dx), mm
    affine: Annotated[Affine, Range(-1e9, 1e9)]  # 4 x 4: index (d, h, w, 1) to RAS millimetres
    orientation: str  # directions of the axes i, j, k of the source file, such as "LPS"
    modality: str  # DICOM's Modality
    slope: Annotated[float, Range(-1e12, 1e12)]  # value = slope * stored + intercept; 1 and 0 for CT, stored in HU
    intercept: Annotated[float, Range(-1e12, 1e12)]
    areas: Annotated[dict[int, tuple[int, ...]], Range(0, 2**32)]  # voxels of each label value on each slice [D]
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
    record = typed(read_json(file, _AGAIN, MAX_BYTES), dict[str, Any], str(file), _AGAIN)
    if (version := record.pop("format", None)) != FORMAT:
        raise UserError(f"{file} has format {shown(version)}, expected {FORMAT}; {_AGAIN}")
    index = typed(record, _Index, str(file), _AGAIN)
    for number, case in enumerate(index.cases):
        check_case(case, f"{file}: cases[{number}]")
    dataset = PreparedDataset(str(path), index.name, index.labels, index.settings, index.source, index.cases)
    for case in dataset.cases:
        shard = root / case.shard
        if not shard.exists():
            raise UserError(f"{shard} is missing; run `sam2-3dmed prepare` again, which writes it again")
        if (size := shard.stat().st_size) != case.bytes:
            raise UserError(damaged_file_message(shard, f"it has {size} bytes of {case.bytes}", REPAIR_HINT))
    return dataset


@dataclass(frozen=True)
class _Index:
    """Members of the index besides its format."""

    name: str
    labels: dict[int, str]
    settings: PrepareSettings
    source: DatasetSource
    cases: tuple[PreparedCase, ...]


def check_case(case: PreparedCase, where: str) -> None:
    """Check the entry of a case, whose types and ranges are checked already; `where` names its file in the error.

    Raises:
        UserError: its id or its shard is not a name inside the dataset, the volume is larger than any file of it, or
            its numbers do not fit each other.
    """
    depth = case.shape[0]
    parts = Path(case.shard).parts
    problem = ""
    if not _is_file_name(case.id):
        problem = f"id is {shown(case.id)}, expected a file name"
    elif not parts or ".." in parts or os.path.isabs(case.shard) or "\0" in case.shard:
        problem = f"shard is {shown(case.shard)}, expected a path inside of the folder"
    elif math.prod(case.shape) > MAX_VOXELS:
        problem = f"shape is {list(case.shape)}, expected at most {MAX_VOXELS} voxels"
    elif case.slope == 0:
        problem = "slope is 0, expected another number"
    elif wrong := [value for value, areas in case.areas.items() if len(areas) != depth or not 0 < value < 256]:
        problem = f"areas.{wrong[0]} is not the list of {depth} areas of a label from 1 to 255"
    if problem:
        raise UserError(f"{where}.{problem}; {_AGAIN}")


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name
