"""Shards: one ArrayRecord file a case, one record a slice.

A record is the slice's values (int16, little-endian, row by row) followed by its labels (uint8), compressed without
loss by ArrayRecord, which also keeps checksums. A clip reads its own slices and no others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError

VALUES = np.dtype("<i2")
LABELS = np.dtype("u1")
_WRITER = "group_size:1,zstd:3"  # records are read one by one; higher levels cost time and save 1 %
_READER = "readahead_buffer_size:0"  # random access


def write_shard(path: str | os.PathLike[str], slices: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Write a case under a temporary name, then rename.

    Args:
        path: the shard.
        slices: values int16 `[H, W]` and labels uint8 `[H, W]` of each slice, inferior to superior.

    Returns:
        The size of the file in bytes.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    writer = ArrayRecordWriter(str(temporary), _WRITER)
    try:
        for values, labels in slices:
            writer.write(
                values.astype(VALUES, casting="safe").tobytes() + labels.astype(LABELS, casting="safe").tobytes()
            )
    finally:
        writer.close()
    temporary.replace(target)
    return target.stat().st_size


class Shard:
    """Random access to a shard's slices."""

    def __init__(self, path: str | os.PathLike[str], shape: tuple[int, int, int]):
        """Open a shard of a case `shape` (D, H, W).

        Raises:
            UserError: no such file, or one that does not hold D records.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        self._path, self._shape = str(path), shape
        try:
            self._reader = ArrayRecordReader(self._path, _READER)
            found = self._reader.num_records()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(damaged(path, str(error))) from error
        if found != shape[0]:
            raise UserError(damaged(path, f"it holds {found} readable slices of {shape[0]}"))

    def read(self, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values int16 `[n, H, W]` and labels uint8 `[n, H, W]` of n slices, which may repeat.

        Raises:
            UserError: a record is damaged.
        """
        _, h, w = self._shape
        values, labels = np.empty((len(slices), h, w), VALUES), np.empty((len(slices), h, w), LABELS)
        for i, d in enumerate(slices):
            try:
                # One by one: a list would go to ArrayRecord's own threads, which is slower and keeps 100 MB more.
                (record,) = self._reader.read([int(d)])
            except (RuntimeError, ValueError, IndexError) as error:
                raise UserError(damaged(self._path, str(error))) from error
            if len(record) != h * w * (VALUES.itemsize + LABELS.itemsize):
                raise UserError(damaged(self._path, f"slice {d} has {len(record)} bytes"))
            values[i] = np.frombuffer(record, VALUES, h * w).reshape(h, w)
            labels[i] = np.frombuffer(record, LABELS, h * w, h * w * VALUES.itemsize).reshape(h, w)
        return values, labels


def damaged(path: str | os.PathLike[str], reason: str) -> str:
    """The sentence for a shard that cannot be used."""
    return f"{path} is damaged ({reason}); delete it and run `sam2-3dmed prepare` again, which writes it anew"
