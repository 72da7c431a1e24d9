"""Shards of features: one ArrayRecord file per case, one record per slice.

A record is the slice's embedding, stride8 and stride4, bfloat16, little-endian, one after the other. It is not
compressed, because that would save a fifth of the space and take four times as long to read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import ml_dtypes
import numpy as np

from sam2_3dmed_jax.data.record_files import RecordFile, write_records
from sam2_3dmed_jax.sam2.model import SliceFeatures

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
REPAIR_HINT = "delete it and run `sam2-3dmed train` again, which encodes its slices again"
_WRITER = "group_size:1,uncompressed"

Shapes = Mapping[str, tuple[int, ...]]  # of each field of one slice's features


def slice_bytes(shapes: Shapes) -> int:
    """Return the bytes of a slice's features."""
    return sum(math.prod(shape) for shape in shapes.values()) * BFLOAT16.itemsize


def write_features(path: str | os.PathLike[str], blocks: Iterable[SliceFeatures]) -> int:
    """Write a case's features, blocks of bfloat16 `[n, ...]`, and return the size of the file in bytes."""
    records = (
        b"".join(np.asarray(x).tobytes() for x in slice_) for block in blocks for slice_ in zip(*block, strict=True)
    )
    return write_records(path, records, _WRITER)


class FeatureShard:
    """Random access to a case's features; threads may share it."""

    def __init__(self, path: str | os.PathLike[str], depth: int, shapes: Shapes):
        """Open the shard of a case of `depth` slices.

        Raises:
            UserError: the file does not exist, or has another number of records.
        """
        self._shapes = [shapes[name] for name in SliceFeatures._fields]
        self._records = RecordFile(path, depth, slice_bytes(shapes), REPAIR_HINT)

    def read(self, slices: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the fields of `SliceFeatures` of slices, bfloat16 `[length, ...]`, padded with zeros.

        Raises:
            UserError: a record is damaged.
        """
        embedding, stride8, stride4 = fields = tuple(np.empty((length, *shape), BFLOAT16) for shape in self._shapes)
        for i, d in enumerate(slices):
            record, at = self._records.read(d), 0
            for field in fields:
                field[i] = np.frombuffer(record, BFLOAT16, field[i].size, at).reshape(field.shape[1:])
                at += field[i].nbytes
        for field in fields:
            field[len(slices) :] = 0
        return embedding, stride8, stride4
