"""Recognition of DICOM files, with or without the preamble, and the extent of their pixel data (PS3.5, PS3.10).

A file without preamble starts with the data set itself, in group 0002 or 0008. Encapsulated pixels are followed to
their sequence delimiter, so that a file that was cut anywhere is known before its pixels are decoded.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sam2_3dmed_jax.volume.formats import all_suffixes, dicom_suffixes

_SOP_CLASS = 0x0016  # element of SOPClassUID in group 0008; a data set that starts after it has none
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")  # 4 bytes of length
_UNDEFINED = 0xFFFFFFFF
_PIXEL_GROUP, _PIXEL_ELEMENTS = 0x7FE0, (0x0008, 0x0009, 0x0010)  # FloatPixelData, DoubleFloatPixelData, PixelData
_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
# Files that are often stored in a folder of slices. All other files that are not DICOM may be damaged slices.
_COMPANION_NAMES = ("dicomdir", "thumbs.db", "desktop.ini", "icon\r", "readme", "license", "licence", "version")
_COMPANION_SUFFIXES = (
    *(".txt", ".md", ".rst", ".pdf", ".doc", ".docx", ".rtf", ".log", ".csv", ".tsv", ".xls", ".xlsx"),
    *(".json", ".xml", ".yaml", ".yml", ".md5", ".sha1", ".sha256"),
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".svg"),
)


class PixelExtent(NamedTuple):
    """Bytes of a pixel data element.

    Attributes:
        size: bytes of its value that the file contains.
        whole: the file contains all bytes that the element announces.
        encapsulated: the value is a sequence of fragments.
    """

    size: int
    whole: bool
    encapsulated: bool


def is_dicom_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file starts as DICOM: DICM after 128 bytes, or a data set without preamble."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or _starts_with_data_set(start, size)


def has_preamble(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has DICOM's magic bytes, DICM after 128 bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_companion(path: Path) -> bool:
    """Return whether the name of a file shows that it is not a slice: a text, table, or other image."""
    name = path.name.lower()
    others = tuple(suffix for suffix in all_suffixes() if suffix not in dicom_suffixes())
    return (
        name.partition(".")[0] in ("readme", "license")
        or name in _COMPANION_NAMES
        or name.endswith((*_COMPANION_SUFFIXES, *others))
    )


def measure_pixels(file: BinaryIO, implicit: bool, little: bool) -> PixelExtent:
    """Return the extent of the pixel data element that an open file is positioned at; without one it is empty."""
    order = "<" if little else ">"
    total = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8 or struct.unpack(f"{order}HH", start[:4]) not in {(_PIXEL_GROUP, e) for e in _PIXEL_ELEMENTS}:
        return PixelExtent(0, False, False)
    length = start[4:]
    if not implicit:
        length = file.read(4) if start[4:6] in _LONG else start[6:] + b"\0\0"
    if len(length) < 4:
        return PixelExtent(0, False, False)
    (promised,) = struct.unpack(f"{order}L", length)
    if promised != _UNDEFINED:
        present = max(0, min(promised, total - file.tell()))
        return PixelExtent(present, present == promised, False)
    return _measure_fragments(file, order, total)


def _measure_fragments(file: BinaryIO, order: str, total: int) -> PixelExtent:
    size = 0
    while len(header := file.read(8)) == 8:
        group, element, length = struct.unpack(f"{order}HHL", header)
        if (group, element) == _DELIMITER:
            return PixelExtent(size, True, True)
        present = min(length, total - file.tell())
        size += present
        if (group, element) != _ITEM or present < length:
            break
        file.seek(length, os.SEEK_CUR)
    return PixelExtent(size, False, True)


def _starts_with_data_set(start: bytes, size: int) -> bool:
    """Return whether bytes are the first element of a data set that can contain a SOPClassUID."""
    if len(start) < 12:
        return False
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", start[:4])
        if group not in (0x0002, 0x0008) or element > _SOP_CLASS:
            continue
        if (vr := start[4:6]).isalpha() and vr.isupper():
            length = start[8:12] if vr in _LONG else start[6:8]
            return int.from_bytes(length, "little" if order == "<" else "big") <= size
        if order == "<":  # implicit VR is always little endian
            return int.from_bytes(start[4:8], "little") <= size - 8
    return False
