"""Shards: one ArrayRecord file a case, one record a slice.

A record is the slice's values (int16, little-endian, row by row) followed by its labels (uint8), compressed without
loss by ArrayRecord. A clip reads its own slices and no others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from sam2_3dmed_jax.data.record_files import Records, write_records

VALUES = np.dtype("<i2")
LABELS = np.dtype("u1")
MEND = "delete it and run `sam2-3dmed prepare` again, which writes it anew"
_WRITER = "group_size:1,zstd:3"  # records are read one by one; higher levels cost time and save 1 %


def write_shard(path: str | os.PathLike[str], slices: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Write a case under a temporary name, then rename.

    Args:
        path: the shard.
        slices: values int16 `[H, W]` and labels uint8 `[H, W]` of each slice, inferior to superior.

    Returns:
        The size of the file in bytes.
    """
    records = (
        values.astype(VALUES, casting="safe").tobytes() + labels.astype(LABELS, casting="safe").tobytes()
        for values, labels in slices
    )
    return write_records(path, records, _WRITER)


class Shard:
    """Random access to a shard's slices."""

    def __init__(self, path: str | os.PathLike[str], shape: tuple[int, int, int]):
        """Open a shard of a case `shape` (D, H, W).

        Raises:
            UserError: no such file, or one that does not hold D records.
        """
        depth, h, w = self._shape = shape
        self._records = Records(path, depth, h * w * (VALUES.itemsize + LABELS.itemsize), MEND)

    def read(self, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values int16 `[n, H, W]` and labels uint8 `[n, H, W]` of n slices, which may repeat.

        Raises:
            UserError: a record is damaged.
        """
        _, h, w = self._shape
        values, labels = np.empty((len(slices), h, w), VALUES), np.empty((len(slices), h, w), LABELS)
        for i, d in enumerate(slices):
            record = self._records.read(d)
            values[i] = np.frombuffer(record, VALUES, h * w).reshape(h, w)
            labels[i] = np.frombuffer(record, LABELS, h * w, h * w * VALUES.itemsize).reshape(h, w)
        return values, labels
