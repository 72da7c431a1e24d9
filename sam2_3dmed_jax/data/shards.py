"""Shards of a prepared dataset: one ArrayRecord file per case, one record per slice.

A record has the values of the slice (int16, little-endian, row by row), then its labels (uint8); ArrayRecord compresses
it without loss. A clip reads only its own slices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from sam2_3dmed_jax.data.record_files import RecordFile, write_records

VALUES = np.dtype("<i2")
LABELS = np.dtype("u1")
REPAIR_HINT = "delete it and run `sam2-3dmed prepare` again, which writes it again"
_WRITER = "group_size:1,zstd:3"  # one record per chunk; higher levels of compression save 1 % and take more time


def write_shard(path: str | os.PathLike[str], slices: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Write the shard of a case, which is complete or does not exist.

    Args:
        path: path of the shard.
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
    """Random access to the slices of a shard."""

    def __init__(self, path: str | os.PathLike[str], shape: tuple[int, int, int]):
        """Open the shard of a case of shape (D, H, W).

        Raises:
            UserError: the file does not exist, or does not have D records.
        """
        depth, h, w = self._shape = shape
        self._records = RecordFile(path, depth, h * w * (VALUES.itemsize + LABELS.itemsize), REPAIR_HINT)

    def read(self, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read values int16 `[n, H, W]` and labels uint8 `[n, H, W]` of n slices, which may repeat.

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
