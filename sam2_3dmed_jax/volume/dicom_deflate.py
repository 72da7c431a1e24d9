"""Reader of DICOM files whose data set is compressed as a whole (Deflated Explicit VR Little Endian, PS3.5 A.5).

pydicom would inflate the whole file before any element is known. Here it reads from a stream that inflates on demand,
up to a limit for the header and, after it, up to the size of the pixels that the header states.

The stream must reach its end mark at the end of the file; zeros may follow as padding. Deflate without the headers of
gzip or zlib has no checksum, so a damaged byte that leaves the stream readable is not found. `NO_CHECKSUM` is the note
about it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.image_file import check_size, optional
from sam2_3dmed_jax.volume.voxel_stream import StoredVoxels, VoxelStream

_DEFLATED = "1.2.840.10008.1.2.1.99"
_HEADER_LIMIT = 2**26  # bytes before the pixels
_TRAILER = 2**16  # bytes after the pixels: padding elements and signatures
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # FloatPixelData, DoubleFloatPixelData, PixelData
NO_CHECKSUM = "is deflated DICOM, which has no checksum, so that damage may go unnoticed: compare it with its source"


def is_deflated(header: Any) -> bool:
    """Return whether the whole data set of a header from `dicom_frame.read_header` is compressed."""
    return str(header.file_meta.get("TransferSyntaxUID")) == _DEFLATED


def read_deflated(path: Path, file: BinaryIO, pixels: bool) -> Any:
    """Read a deflated file as a pydicom data set; None if it is not deflated.

    Args:
        path: the file.
        file: the same file, open.
        pixels: read the pixels too.

    Raises:
        UserError: the header or the pixels are larger than they may be, the stream has no end mark, other data follow
            it, or the pixels are shorter or longer than the header states.
    """
    reader = optional("pydicom.filereader", path)
    preamble = reader.read_preamble(file, True)
    meta = reader._read_file_meta_info(file)  # the function by which `dcmread` finds out the syntax
    if str(meta.get("TransferSyntaxUID")) != _DEFLATED:
        return None
    with VoxelStream(StoredVoxels(path, "deflate", file.tell())) as stream:
        inflated = _Inflated(path, stream)
        data = reader.read_dataset(inflated, False, True, stop_when=lambda tag, vr, length: tag in _PIXELS)
        # A file that was cut is found here already, before any pixels are needed.
        stated = _stated_size(path, data) if "Rows" in data and "BitsAllocated" in data else 0
        inflated.limit = inflated.tell() + stated + _TRAILER
        if pixels:
            data.update(reader.read_dataset(inflated, False, True))
            found = next((len(data[tag].value) for tag in _PIXELS if tag in data), 0)
            if found != stated:
                raise UserError(
                    f"{path} is damaged: it holds {found} bytes of pixels, and its header states {stated}: copy or "
                    "export it again"
                )
        inflated.drain()
    header = optional("pydicom.dataset", path).FileDataset(str(path), data, preamble, meta, False, True)
    header.set_original_encoding(False, True, data._character_set)
    return header


def _stated_size(path: Path, header: Any) -> int:
    """Return the bytes of the pixels that a header states, after a check that a volume may have them."""
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    bits = int(header.BitsAllocated)
    shape = (frames, int(header.Rows), int(header.Columns), samples)
    check_size(path, shape, (bits + 7) // 8)
    size = (shape[0] * shape[1] * shape[2] * samples * bits + 7) // 8
    return size + size % 2


class _Inflated:
    """File of the inflated bytes, as far as they are read; up to `limit`."""

    def __init__(self, path: Path, stream: VoxelStream):
        self._path = path
        self._stream = stream
        self._data = bytearray()  # pydicom seeks back
        self._position = 0
        self.limit = _HEADER_LIMIT

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        goal = offset + (self._position if whence == os.SEEK_CUR else 0)
        self._inflate(goal)
        self._position = min(max(0, goal), len(self._data))
        return self._position

    def read(self, count: int) -> bytes:
        self._inflate(self._position + count)
        start, self._position = self._position, min(self._position + count, len(self._data))
        return bytes(self._data[start : self._position])

    def drain(self) -> None:
        """Read and drop the rest, up to the limit, which checks the end of the stream."""
        size = len(self._data)
        while block := self._stream.read(_TRAILER):
            size += len(block)
            self._check(size)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise UserError(
                f"{self._path} inflates to more than the {self.limit} bytes that its header and its pixels may have: "
                "copy or export it again"
            )

    def _inflate(self, goal: int) -> None:
        self._check(goal)
        if goal > len(self._data):
            self._data += self._stream.read(goal - len(self._data))
