"""Images in each compressed file format, written byte by byte, and damage to their compressed streams."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (12, 10, 8)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zlib": zlib.compress,
    "bzip2": bz2.compress,
}
_STREAM = {"gzip": 10, "zlib": 2}  # bytes before the deflate stream
Change = Callable[[bytes, str], bytes]  # decompressed data and encoding -> the stream to store


def intact(data: bytes, encoding: str) -> bytes:
    """Return the compressed data."""
    return _COMPRESS[encoding](data)


def two_streams(data: bytes, encoding: str) -> bytes:
    """Return two concatenated streams, as pigz and bgzip write them."""
    return intact(data[:100], encoding) + intact(data[100:], encoding)


def padded(data: bytes, encoding: str) -> bytes:
    """Return the stream with zeros after it."""
    return intact(data, encoding) + bytes(700)


def flips(data: bytes, encoding: str) -> Iterator[bytes]:
    """Yield streams with one flipped bit that a reader without checksums reads as other data of the same length."""
    whole = intact(data, encoding)
    start = _STREAM[encoding]
    header = 352 if data.startswith((348).to_bytes(4, "little")) else 0
    for at in range(len(whole) - 9, start, -1):
        stream = bytearray(whole)
        stream[at] ^= 0x10
        try:
            found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(bytes(stream[start:]))
        except zlib.error:
            continue
        if len(found) == len(data) and found != data and found[:header] == data[:header]:
            yield bytes(stream)


def flipped(data: bytes, encoding: str) -> bytes:
    """Return a stream with other voxels; of bzip2, whose blocks have checksums, one with a wrong total checksum."""
    if encoding == "bzip2":
        whole = bytearray(intact(data, encoding))
        whole[-3] ^= 0x10
        return bytes(whole)
    return next(flips(data, encoding))


def wrong_checksum(data: bytes, encoding: str) -> bytes:
    """Return a stream with all voxels and a wrong checksum."""
    whole = bytearray(intact(data, encoding))
    whole[-8 if encoding == "gzip" else -3] ^= 0x10
    return bytes(whole)


def cut(data: bytes, encoding: str) -> bytes:
    """Return a stream with all voxels, without the last bytes of its end."""
    return intact(data, encoding)[:-2]


def followed(data: bytes, encoding: str) -> bytes:
    """Return a stream with other data after it, such as the page of a failed download."""
    return intact(data, encoding) + b"<html>"


def longer(data: bytes, encoding: str) -> bytes:
    """Return an intact stream of more data than the header states."""
    return intact(data + b"ab", encoding)


def shorter(data: bytes, encoding: str) -> bytes:
    """Return an intact stream of less data than the header states."""
    return intact(data[:-2], encoding)


DAMAGES = (flipped, wrong_checksum, cut, followed, longer, shorter)


def _nifti(array: np.ndarray, pair: bool) -> tuple[bytes, bytes]:
    """Return header and voxels."""
    kind = nib.Nifti1Pair if pair else nib.Nifti1Image
    header = kind(array, AFFINE).header
    header.set_data_offset(0 if pair else 352)
    return header.binaryblock + (b"" if pair else bytes(4)), array.tobytes("F")


def _write_nifti(suffix: str, encoding: str) -> Callable[[Path, np.ndarray, Change], Path]:
    def write(folder: Path, array: np.ndarray, change: Change) -> Path:
        header, voxels = _nifti(array, pair=False)
        path = folder / f"a{suffix}"
        path.write_bytes(change(header + voxels, encoding))
        return path

    return write


def _write_pair(folder: Path, array: np.ndarray, change: Change) -> Path:
    header, voxels = _nifti(array, pair=True)
    (folder / "a.hdr.gz").write_bytes(intact(header, "gzip"))
    (folder / "a.img.gz").write_bytes(change(voxels, "gzip"))
    return folder / "a.img.gz"


def _nrrd_header(array: np.ndarray, encoding: str, detached: str = "") -> bytes:
    type_name = {"int16": "short", "uint8": "unsigned char"}[array.dtype.name]
    lines = (
        *("NRRD0004", f"type: {type_name}", "dimension: 3", "space: left-posterior-superior"),
        f"sizes: {' '.join(map(str, array.shape))}",
        *("space directions: (1,0,0) (0,1,0) (0,0,2)", "space origin: (0,0,0)", "endian: little"),
        *("# encoding: raw", "encoding:=a key, not a field", f"encoding: {encoding}"),
        *([f"data file: {detached}"] if detached else []),
    )
    return ("\n".join(lines) + "\n\n").encode()


def _write_nrrd(encoding: str) -> Callable[[Path, np.ndarray, Change], Path]:
    def write(folder: Path, array: np.ndarray, change: Change) -> Path:
        path = folder / "a.nrrd"
        path.write_bytes(_nrrd_header(array, encoding) + change(array.tobytes("F"), encoding))
        return path

    return write


def _write_nhdr(folder: Path, array: np.ndarray, change: Change) -> Path:
    (folder / "a.nhdr").write_bytes(_nrrd_header(array, "gzip", "a.raw.gz"))
    (folder / "a.raw.gz").write_bytes(change(array.tobytes("F"), "gzip"))
    return folder / "a.nhdr"


def _meta_header(array: np.ndarray, stream: bytes, data_file: str) -> bytes:
    type_name = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[array.dtype.name]
    lines = (
        *("ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"),
        *("CompressedData = True", f"CompressedDataSize = {len(stream)}", "TransformMatrix = 1 0 0 0 1 0 0 0 1"),
        *("Offset = 0 0 0", "ElementSpacing = 1 1 2", f"DimSize = {' '.join(map(str, array.shape))}"),
        *(f"ElementType = {type_name}", f"ElementDataFile = {data_file}"),
    )
    return ("\n".join(lines) + "\n").encode()


def _write_meta_image(suffix: str) -> Callable[[Path, np.ndarray, Change], Path]:
    def write(folder: Path, array: np.ndarray, change: Change) -> Path:
        stream, path = change(array.tobytes("F"), "zlib"), folder / f"a{suffix}"
        if suffix == ".mha":
            path.write_bytes(_meta_header(array, stream, "LOCAL") + stream)
        else:
            path.write_bytes(_meta_header(array, stream, "a.zraw"))
            (folder / "a.zraw").write_bytes(stream)
        return path

    return write


# Writers by format; each returns the path to read.
WRITERS: dict[str, Callable[[Path, np.ndarray, Change], Path]] = {
    ".nii.gz": _write_nifti(".nii.gz", "gzip"),
    ".nii.bz2": _write_nifti(".nii.bz2", "bzip2"),
    ".img.gz": _write_pair,
    ".nrrd gzip": _write_nrrd("gzip"),
    ".nrrd bzip2": _write_nrrd("bzip2"),
    ".nhdr": _write_nhdr,
    ".mha": _write_meta_image(".mha"),
    ".mhd": _write_meta_image(".mhd"),
}


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return an int16 image with noise, `[i, j, k]`."""
    return np.random.default_rng(seed).integers(-200, 200, shape).astype(np.int16)


def labels(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return a uint8 label map of labels 0 to 3, `[i, j, k]`."""
    return np.random.default_rng(1).integers(0, 4, shape).astype(np.uint8)
