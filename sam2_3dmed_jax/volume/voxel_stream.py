"""Reader of the voxels of a file, raw or compressed (gzip, zlib, bzip2, deflate), that verifies the whole file.

A stream is read to its end after the last voxel, because its checksum and its length are there. It must contain exactly
the bytes that the header of the image states; some zeros may follow as padding. Concatenated gzip or bzip2 streams
(pigz, bgzip) are one stream. Deflate has no checksum: only its end and its length are verified. Numbers as text are
read in blocks, too.

Memory is bounded before it is taken: `check_stored` compares the size that a header states with the most that its file
can decompress to.
"""

from __future__ import annotations

import bz2
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.foreign_errors import one_line
from sam2_3dmed_jax.runtime.user_files import check_regular
from sam2_3dmed_jax.volume.image_file import check_promise

_CHUNK = 2**16  # bytes of the file that are decompressed at once
_BLOCK = 2**18  # limit of decompressed bytes in memory, besides the array
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "zlib": lambda: zlib.decompressobj(32 + zlib.MAX_WBITS),  # MetaImage: zlib, and gzip too
    "deflate": lambda: zlib.decompressobj(-zlib.MAX_WBITS),
    "bzip2": bz2.BZ2Decompressor,
}
# Largest ratio of decompressed to compressed bytes. Deflate encodes 258 bytes with 2 bits. A block of bzip2 has at
# least 24 bytes, and at most 900,000 bytes after its run-length encoding, which replaces 259 bytes by 5.
_LARGEST_RATIO = {"gzip": 1032, "zlib": 1032, "deflate": 1032, "bzip2": 2**21}
_PADDING = 2**20  # limit of zeros after the voxels, in bytes
_TOKEN = 64  # characters of a number as text
_REASONS = {"incorrect data check": "its checksum is wrong", "incorrect length check": "its length is wrong"}  # of zlib
_CONCATENATED = ("gzip", "bzip2")
RAW, TEXT = "raw", "text"
ENCODINGS = (RAW, TEXT, *_DECOMPRESSORS)
_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2"}


@dataclass(frozen=True)
class StoredVoxels:
    """Position of the voxels of an image.

    Attributes:
        path: the file.
        encoding: one of `ENCODINGS`.
        start: bytes of the file before the data.
        skip: bytes of the decompressed data before the voxels.
        size: bytes of the compressed data, if the header states it; None: up to the end of the file.
    """

    path: Path
    encoding: str = RAW
    start: int = 0
    skip: int = 0
    size: int | None = None


class VoxelStream:
    """Decompressed bytes of a file in order; a context manager.

    Every method raises a UserError that names the file if it is truncated or damaged.
    """

    def __init__(self, stored: StoredVoxels):
        """Remember what to read; `__enter__` opens the file."""
        self._stored = stored
        self._position = 0

    def __enter__(self) -> VoxelStream:
        """Open the file.

        Raises:
            UserError: it cannot be read, or is shorter than the stated compressed size.
        """
        stored = self._stored
        try:
            check_regular(stored.path, "give an image file")  # a header may name a pipe, which nobody writes to
            self._file: BinaryIO = open(stored.path, "rb")
            length = os.fstat(self._file.fileno()).st_size
            self._file.seek(stored.start)
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from None
        if stored.size is not None and stored.start + stored.size > length:
            self._file.close()
            raise self._damaged(f"it has {length - stored.start} of {stored.size} compressed bytes")
        self._left = max(0, length - stored.start) if stored.size is None else stored.size
        self._decompressor: Any = None
        self._compressed = b""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def skip(self, count: int) -> None:
        """Read and drop bytes; in a raw file, only seek."""
        goal = self._position + count
        if self._stored.encoding == RAW:
            step = min(count, self._left)
            self._file.seek(step, os.SEEK_CUR)
            self._left -= step
            self._position += step
        while self._position < goal:
            self._require(self._next(min(goal - self._position, _BLOCK)), goal)

    def read_into(self, array: np.ndarray) -> None:
        """Fill a contiguous array of bytes, uint8 `[n]`."""
        start, goal = self._position, self._position + len(array)
        while self._position < goal:
            at = self._position - start
            data = self._next(min(len(array) - at, _BLOCK))
            self._require(data, goal)
            array[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def read(self, most: int) -> bytes:
        """Return the next bytes, at most `most`; fewer only at the end of the data."""
        parts = []
        while most > 0 and (data := self._next(min(most, _BLOCK))):
            parts.append(data)
            most -= len(data)
        return b"".join(parts)

    def drain(self) -> None:
        """Read and drop all bytes up to the end of the file."""
        while self._next(_BLOCK):
            pass

    def read_numbers(self, array: np.ndarray) -> None:
        """Fill an array `[n]` with numbers that are stored as text, separated by white space.

        The text must contain exactly as many numbers.
        """
        number = int if array.dtype.kind in "iu" else float
        count, rest = 0, b""
        while data := self._next(_BLOCK):
            *whole, rest = re.split(rb"\s+", rest + data)
            tokens = [token for token in whole if token]
            if max(map(len, (*tokens, rest))) > _TOKEN or count + len(tokens) > len(array):
                raise self._damaged(f"it does not hold {len(array)} numbers as text")
            self._parse(tokens, number, array[count:])
            count += len(tokens)
        if rest and count < len(array):
            self._parse([rest], number, array[count:])
            count, rest = count + 1, b""
        if rest or count != len(array):
            raise self._damaged(f"it does not hold {len(array)} numbers as text")

    def _parse(self, tokens: Sequence[bytes], number: type, array: np.ndarray) -> None:
        try:
            array[: len(tokens)] = [number(token) for token in tokens]
        except (ValueError, OverflowError) as error:
            raise self._damaged(one_line(error)) from None

    def finish(self) -> None:
        """Read to the end of the file, which verifies checksum and length; only some zeros may follow."""
        goal = self._position
        while data := self._next(_BLOCK):
            if data.count(0) != len(data) or self._position - goal > _PADDING:
                raise self._damaged(f"it holds more than the {goal} bytes that its header states")

    def _next(self, most: int) -> bytes:
        """Return between 1 and `most` bytes, or none at the end."""
        try:
            data = self._read(most) if self._stored.encoding in (RAW, TEXT) else self._decompressed(most)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            message = one_line(error)
            raise self._damaged(_REASONS.get(message.rpartition(": ")[2], message)) from None
        self._position += len(data)
        return data

    def _read(self, most: int) -> bytes:
        data = self._file.read(min(most, self._left))
        self._left -= len(data)
        return data

    def _decompressed(self, most: int) -> bytes:
        while True:
            if self._decompressor is None or self._decompressor.eof:
                if not self._begin():
                    return b""
            elif not self._compressed and getattr(self._decompressor, "needs_input", True):
                self._compressed = self._read(_CHUNK)
            given = self._compressed  # may be empty: the last bytes may still be inside the decompressor
            data: bytes = self._decompressor.decompress(given, most)
            self._compressed = getattr(self._decompressor, "unconsumed_tail", b"")
            if data:
                return data
            if not given and not self._decompressor.eof:
                raise EOFError("the compressed data have no end mark")

    def _begin(self) -> bool:
        """Start the first stream, or one that follows another; return whether there is one."""
        first = self._decompressor is None
        rest = b"" if first else self._decompressor.unused_data
        while not rest or (not first and rest.count(0) == len(rest)):  # padding
            rest = self._read(_CHUNK)
            if not rest:
                if first:
                    raise EOFError("it has no compressed data")
                return False
        if not first:
            if self._stored.encoding not in _CONCATENATED:
                raise ValueError("other data follow the end of the compressed data")
            rest = rest.lstrip(b"\0")
        self._compressed = rest
        self._decompressor = _DECOMPRESSORS[self._stored.encoding]()
        return True

    def _require(self, data: bytes, goal: int) -> None:
        if not data:
            raise self._damaged(f"it holds {self._position} bytes, and its header states at least {goal}")

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self._stored.path} is truncated or damaged ({reason}): copy or download it again")


def encoding_of(path: str | os.PathLike[str]) -> str:
    """Return the encoding of a file that is compressed as a whole, by its suffix; `RAW` if it is not."""
    return _SUFFIXES.get(Path(path).suffix.lower(), RAW)


def check_stored(stored: StoredVoxels, promised: int) -> None:
    """Compare the voxels that a header promises with the most that its file can contain.

    Args:
        stored: position of the voxels.
        promised: bytes of all voxels; of voxels as text, their number.

    Raises:
        UserError: the file is too short for its header.
    """
    left = max(0, os.path.getsize(stored.path) - stored.start)
    if stored.encoding == TEXT:
        check_promise(stored.path, promised, (left + 1) // 2, "numbers")  # of one character and one space each
    else:
        check_promise(stored.path, stored.skip + promised, left * _LARGEST_RATIO.get(stored.encoding, 1))


def read_parts(parts: Sequence[StoredVoxels], shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Read one volume whose files have equal shares of it; otherwise as `read_voxels`."""
    voxels = np.empty((len(parts), math.prod(shape) // len(parts)), dtype)
    for stored, share in zip(parts, voxels, strict=True):
        with VoxelStream(stored) as stream:
            if stored.encoding == TEXT:
                stream.read_numbers(share)
            else:
                stream.skip(stored.skip)
                stream.read_into(share.view(np.uint8))
                stream.finish()
    return voxels.reshape(-1).reshape(shape, order="F")


def read_voxels(
    stored: StoredVoxels, shape: Sequence[int], dtype: np.dtype, index: int = 0, count: int = 1
) -> np.ndarray:
    """Read one volume, and verify the whole file.

    Args:
        stored: position of the first volume.
        shape: lengths of the axes; the first axis varies fastest in the file.
        dtype: type of the stored voxels, with their byte order.
        index: the volume to read, 0-based.
        count: volumes in the file.

    Returns:
        An array of `shape` and `dtype`, in Fortran order.

    Raises:
        UserError: the file is truncated or damaged, or contains more than `count` volumes.
    """
    voxels = np.empty(math.prod(shape), dtype)
    with VoxelStream(stored) as stream:
        stream.skip(stored.skip + index * voxels.nbytes)
        stream.read_into(voxels.view(np.uint8))
        stream.skip((count - 1 - index) * voxels.nbytes)
        stream.finish()
    return voxels.reshape(shape, order="F")


def verify(stored: StoredVoxels) -> None:
    """Read a file of any length to its end.

    Raises:
        UserError: it is truncated or damaged.
    """
    with VoxelStream(stored) as stream:
        stream.drain()
