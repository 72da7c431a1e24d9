"""Text headers of NRRD and MetaImage files: their fields, and the position of the voxels.

Sources: https://teem.sourceforge.net/nrrd/format.html and ITK's MetaIO. The geometry is left to ITK (`itk.py`). Voxels
as text, and voxels in several files, have no position here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.voxel_stream import RAW, StoredVoxels

_LIMIT = 2**22  # bytes; a .seg.nrrd has about 500 bytes per segment
_NRRD_ENCODINGS = {"raw": RAW, "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}


@dataclass(frozen=True)
class TextHeader:
    """A header as it is stored.

    Attributes:
        path: the file.
        fields: values by name; names are in lower case.
        end: bytes of the header, after which voxels in the same file start.
        is_meta_image: the file is a MetaImage, not a NRRD.
    """

    path: Path
    fields: Mapping[str, str]
    end: int
    is_meta_image: bool

    @property
    def big_endian(self) -> bool:
        """Return whether voxels have the most significant byte first."""
        if not self.is_meta_image:
            return self.fields.get("endian", "little").lower() == "big"
        names = ("binarydatabyteordermsb", "elementbyteordermsb")
        return any(_is_true(self.fields[name]) for name in names if name in self.fields)

    @property
    def data_file(self) -> Path | None:
        """Return the file with the voxels; None if they are in several files.

        Raises:
            UserError: the file does not exist.
        """
        names = ("elementdatafile",) if self.is_meta_image else ("data file", "datafile")
        detached = next((self.fields[name] for name in names if self.fields.get(name)), "LOCAL")
        if detached.upper().startswith("LIST") or "%" in detached:
            return None
        data_path = self.path if detached.upper() == "LOCAL" else self.path.parent / detached
        if not data_path.is_file():
            raise UserError(f"{self.path} is a header without data, expected {data_path}: copy that file there too")
        return data_path


def read_text_header(path: str | os.PathLike[str]) -> TextHeader:
    """Read a header; a file that is not text gives one without meaningful fields.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_LIMIT)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give a readable file") from None
    meta = not start.startswith(b"NRRD")
    fields: dict[str, str] = {}
    end = 0
    while end < len(start):
        stop = start.find(b"\n", end)
        stop = len(start) if stop < 0 else stop
        line = start[end:stop].decode("latin-1").strip()
        end = min(stop + 1, len(start))
        if not line and not meta:
            break  # an empty line ends the header of a NRRD
        name, _, value = line.partition("=" if meta else ":")
        if not meta and (line.startswith("#") or value.startswith("=")):
            continue  # a comment, or a key/value pair, which may have the name of a field
        fields.setdefault(name.strip().lower(), value.strip())
        if meta and name.strip() == "ElementDataFile":
            break  # the last field
    return TextHeader(Path(path), fields, end, meta)


def stored_voxels(header: TextHeader, size: int) -> StoredVoxels | None:
    """Return the position of binary voxels in one file; None for voxels as text or in several files.

    Args:
        header: from `read_text_header`.
        size: bytes of all voxels, from which the start of the voxels follows if they are at the end of the file.

    Raises:
        UserError: compressed voxels are in several files, whose ends cannot be verified; or a number is invalid.
    """
    data_path = header.data_file
    meta = header.is_meta_image
    encoding = _meta_encoding(header) if meta else _NRRD_ENCODINGS.get(header.fields.get("encoding", "raw").lower())
    if encoding is None or (data_path is None and encoding == RAW):
        return None
    if data_path is None:
        raise UserError(f"{header.path} has compressed voxels in several files, expected one: save it as one file")
    start = header.end if data_path == header.path else 0
    if meta:
        before = _number(header, ("headersize",))
        if before:
            start = _at_end(header, data_path, encoding, size) if before < 0 else before
        compressed_size = _number(header, ("compresseddatasize",)) if encoding != RAW else 0
        return StoredVoxels(data_path, encoding, start, 0, compressed_size or None)
    lines, before = _number(header, ("line skip", "lineskip")), _number(header, ("byte skip", "byteskip"))
    start = _after_lines(data_path, start, lines)
    if before < 0:
        return StoredVoxels(data_path, encoding, _at_end(header, data_path, encoding, size))
    if encoding == RAW:
        return StoredVoxels(data_path, encoding, start + before)
    return StoredVoxels(data_path, encoding, start, before)


def _meta_encoding(header: TextHeader) -> str | None:
    if not _is_true(header.fields.get("binarydata", "True")):
        return None
    return "zlib" if _is_true(header.fields.get("compresseddata", "False")) else RAW


def _is_true(value: str) -> bool:
    """Return a truth value as MetaIO does, which reads the first letter."""
    return value[:1] in ("T", "t", "1")


def _number(header: TextHeader, names: tuple[str, ...]) -> int:
    text = next((header.fields[name] for name in names if header.fields.get(name)), "0")
    try:
        number = int(text)
    except ValueError:
        number = -2
    if number < -1:
        raise UserError(f"{header.path} has '{names[0]}' {text[:40]!r}, expected a whole number: export it again")
    return number


def _at_end(header: TextHeader, data_path: Path, encoding: str, size: int) -> int:
    if encoding != RAW:
        raise UserError(f"{header.path} skips a header of unknown size, expected raw voxels: save it as one .nrrd file")
    return max(0, data_path.stat().st_size - size)


def _after_lines(path: Path, start: int, lines: int) -> int:
    if not lines:
        return start
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(lines):
            if not file.readline(_LIMIT):
                break
        return file.tell()
