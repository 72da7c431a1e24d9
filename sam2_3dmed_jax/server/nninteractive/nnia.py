"""NNIA, the framing of arrays in nnInteractive's protocol: a header, and chunks that blosc2 compressed.

All numbers are little-endian:

    "NNIA", uint8 version 1, uint8 codec (1 zstd, 2 LZ4), uint8 number of axes, uint8 length of the dtype's name
    the dtype's name in ASCII, such as "float32"; int64 length of each axis; uint32 number of chunks
    per chunk: uint64 bytes, uint64 compressed bytes, and a frame of blosc2

Arrays are in C order. All sizes are checked before anything is decompressed; the layout is the same as in
`nnInteractive.inference.remote.serialization`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection

import blosc2
import numpy as np

from sam2_3dmed_jax.errors import UserError, cut
from sam2_3dmed_jax.runtime.foreign_errors import foreign

MAGIC = b"NNIA"
VERSION = 1
ZSTD, LZ4 = 1, 2
CHUNK_BYTES = 2**30  # blosc2 counts the bytes of one call in an int32
MAX_AXES = 4
MAX_EXTENT = 2**31 - 1
HEADER = struct.Struct("<4sBBBB")
CHUNK = struct.Struct("<QQ")

MASK_DTYPES = frozenset({"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32"})
IMAGE_DTYPES = MASK_DTYPES | {"float64", "int64", "uint64"}


def pack(array: np.ndarray) -> bytes:
    """Return an array as NNIA."""
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    name = array.dtype.name.encode()
    raw = array.reshape(-1).data.cast("B")
    starts = range(0, len(raw), CHUNK_BYTES)
    parts = [HEADER.pack(MAGIC, VERSION, ZSTD, array.ndim, len(name)), name]
    parts += [struct.pack(f"<{array.ndim}q", *array.shape), struct.pack("<I", len(starts))]
    for start in starts:
        chunk = raw[start : start + CHUNK_BYTES]
        # The size of an element must be right: blosc2 cannot read frames of zeros of other lengths.
        frame = blosc2.compress2(
            chunk,
            typesize=array.itemsize,
            codec=blosc2.Codec.ZSTD,
            clevel=1,
            filters=[blosc2.Filter.NOFILTER],
        )
        parts += [CHUNK.pack(len(chunk), len(frame)), frame]
    return b"".join(parts)


def unpack(data: bytes, max_elements: int, dtypes: Collection[str], axes: int) -> np.ndarray:
    """Return the array in NNIA bytes.

    Args:
        data: from a client.
        max_elements: more are refused.
        dtypes: names of dtypes; others are refused.
        axes: number of axes.

    Raises:
        UserError: the bytes are damaged, or the array is not an expected one; before memory for it is taken.
    """
    reader = _Reader(data)
    magic, version, codec, ndim, name_length = HEADER.unpack(reader.take(HEADER.size))
    if magic != MAGIC or version != VERSION or codec not in (ZSTD, LZ4):
        raise UserError(f"the array starts with {data[:6]!r}, which is not NNIA of version {VERSION} with zstd or LZ4")
    name = reader.take(name_length).decode("ascii", "replace")
    if name not in dtypes:
        raise UserError(f"the array is of dtype {cut(repr(name), 40)}, expected one of {', '.join(sorted(dtypes))}")
    if ndim != axes:
        raise UserError(f"the array has {ndim} axes, expected {axes}")
    shape = struct.unpack(f"<{ndim}q", reader.take(8 * ndim))
    if not all(1 <= extent <= MAX_EXTENT for extent in shape) or math.prod(shape) > max_elements:
        raise UserError(f"the array has shape {shape}, and this server allows 1 to {max_elements} elements")
    frames = _frames(reader, math.prod(shape) * np.dtype(name).itemsize, np.dtype(name).itemsize)
    out = np.empty(math.prod(shape), np.dtype(name).newbyteorder("<"))
    start = 0
    for count, frame in frames:
        with foreign("blosc2", lambda reason: str(_damaged(f"a chunk cannot be decompressed ({reason})"))):
            blosc2.decompress2(frame, dst=out[start : start + count])
        start += count
    if name == "bool":  # other bytes than 0 and 1 are undefined behaviour in NumPy
        out = out.view(np.uint8) != 0
    return out.reshape(shape)


class _Reader:
    """Reads parts of bytes from their start to their end."""

    def __init__(self, data: bytes):
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            UserError: there are fewer.
        """
        if count > len(self._data) - self._position:
            raise _damaged("it ends too early")
        self._position += count
        return self._data[self._position - count : self._position]

    @property
    def is_at_end(self) -> bool:
        return self._position == len(self._data)


def _frames(reader: _Reader, expected: int, itemsize: int) -> list[tuple[int, bytes]]:
    """Return the number of elements and the frame of each chunk, after a check of all their sizes.

    Raises:
        UserError: they do not add up to the `expected` bytes of the array.
    """
    (count,) = struct.unpack("<I", reader.take(4))
    frames = []
    for _ in range(count):
        raw, compressed = CHUNK.unpack(reader.take(CHUNK.size))
        if raw > min(expected, CHUNK_BYTES) or raw % itemsize or not raw:
            raise _damaged(f"a chunk promises {raw} bytes")
        frame = reader.take(compressed)
        with foreign("blosc2", lambda reason: str(_damaged(f"a chunk is not a frame of blosc2 ({reason})"))):
            frame_raw, frame_compressed, _ = blosc2.get_cbuffer_sizes(frame)
        if (frame_raw, frame_compressed) != (raw, compressed):
            raise _damaged("the sizes of a chunk contradict each other")
        expected -= raw
        frames.append((raw // itemsize, frame))
    if expected or not reader.is_at_end:
        raise _damaged("its chunks do not have the size of the array")
    return frames


def _damaged(what: str) -> UserError:
    return UserError(f"the array is damaged: {what}; send it again")
