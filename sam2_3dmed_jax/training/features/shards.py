"""Shards of features: one ArrayRecord file a case, one record a slice.

A record is the slice's embedding, stride8 and stride4, bfloat16, little-endian, one after the other. It is not
compressed: that would save a fifth of the room and take four times as long to read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import ml_dtypes
import numpy as np

from sam2_3dmed_jax.data.record_files import Records, write_records
from sam2_3dmed_jax.sam2.model import SliceFeatures

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MEND = "delete it and run `sam2-3dmed train` again, which encodes its slices anew"
_WRITER = "group_size:1,uncompressed"

Shapes = Mapping[str, tuple[int, ...]]  # of each field of one slice's features


def slice_bytes(shapes: Shapes) -> int:
    """Bytes of a slice's features."""
    return sum(math.prod(shape) for shape in shapes.values()) * BFLOAT16.itemsize


def write_features(path: str | os.PathLike[str], blocks: Iterable[SliceFeatures]) -> int:
    """Write a case's features, bfloat16 `[n, ...]` a block, under a temporary name, then rename; returns the bytes."""
    records = (
        b"".join(np.asarray(x).tobytes() for x in slice_) for block in blocks for slice_ in zip(*block, strict=True)
    )
    return write_records(path, records, _WRITER)


class FeatureShard:
    """Random access to a case's features; threads may share it."""

    def __init__(self, path: str | os.PathLike[str], depth: int, shapes: Shapes):
        """Open the shard of a case of `depth` slices.

        Raises:
            UserError: no such file, or one that does not hold as many records.
        """
        self._shapes = [shapes[name] for name in SliceFeatures._fields]
        self._records = Records(path, depth, slice_bytes(shapes), MEND)

    def read(self, slices: Sequence[int], room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fields of `SliceFeatures`, bfloat16 `[room, ...]`: of the slices, which may repeat, then zeros.

        Raises:
            UserError: a record is damaged.
        """
        embedding, stride8, stride4 = fields = tuple(np.empty((room, *shape), BFLOAT16) for shape in self._shapes)
        for i, d in enumerate(slices):
            record, at = self._records.read(d), 0
            for field in fields:
                field[i] = np.frombuffer(record, BFLOAT16, field[i].size, at).reshape(field.shape[1:])
                at += field[i].nbytes
        for field in fields:
            field[len(slices) :] = 0
        return embedding, stride8, stride4
