"""Text headers of NRRD and MetaImage files: their fields, each with its type and its limits.

Sources: https://teem.sourceforge.net/nrrd/format.html, and ITK's MetaIO and NrrdImageIO for the geometry. No native
library sees these files, because ITK trusts their headers: long fields overrun its buffers, and names of files are
formats of printf. Voxels in hexadecimal, and in files that are named by a pattern, are not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.user_files import check_regular
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS
from sam2_3dmed_jax.volume.voxel_stream import RAW, TEXT, StoredVoxels

_LIMIT = 2**22  # bytes; a .seg.nrrd has about 500 bytes per segment
_MOST_AXES = 16  # of NRRD
_LONGEST_AXIS = 2**31 - 1
_LARGEST_NUMBER = 1e9  # of the geometry, in mm
_NAME = 255  # characters of a file name
_NRRD_TYPES = {
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
    "int64": (
        *("longlong", "long long", "long long int", "signed long long", "signed long long int"),
        *("int64", "int64_t"),
    ),
    "uint64": (
        *("ulonglong", "unsigned long long", "unsigned long long int"),
        *("uint64", "uint64_t"),
    ),
    "float32": ("float",),
    "float64": ("double",),
}
_NRRD_ENCODINGS = {
    **{"raw": RAW, "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"},
    **{"text": TEXT, "txt": TEXT, "ascii": TEXT},
}
# Signs that turn the axes of a space into left, posterior, superior. As in ITK, other spaces are taken for it.
_LPS_SIGNS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("scanner-xyz", "3d-right-handed", "3d-left-handed"), (1, 1, 1)),
}
_DOMAIN_KINDS = ("domain", "space", "time", "???", "none")  # of axes of the grid; other kinds are parts of one voxel
_META_TYPES = {
    **{"MET_CHAR": "int8", "MET_UCHAR": "uint8", "MET_SHORT": "int16", "MET_USHORT": "uint16"},
    **{"MET_INT": "int32", "MET_UINT": "uint32", "MET_LONG": "int32", "MET_ULONG": "uint32"},
    **{"MET_LONG_LONG": "int64", "MET_ULONG_LONG": "uint64", "MET_FLOAT": "float32", "MET_DOUBLE": "float64"},
}
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """A header whose fields were checked.

    Attributes:
        path: the file.
        shape: lengths of the axes of the grid, at least 1; the first one varies fastest.
        components: numbers per voxel.
        components_first: the numbers of a voxel are adjacent.
        dtype: of the stored numbers, with their byte order.
        affine: `[4, 4]` float64, voxel index to RAS mm; None if there are not three axes.
        parts: files with equal shares of the voxels; one or more.
        units: of lengths, as they are written; empty: millimetres.
        pairs: key/value pairs of a NRRD.
    """

    path: Path
    shape: tuple[int, ...]
    components: int
    components_first: bool
    dtype: np.dtype
    affine: np.ndarray | None
    parts: tuple[StoredVoxels, ...]
    units: tuple[str, ...] = ()
    pairs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fields:
    """Fields of a header as text, by name in lower case, with typed access.

    Attributes:
        path: the file.
        values: the fields.
        end: bytes of the header, after which voxels in the same file start.
        listed: the lines after the last field, which name files.
    """

    path: Path
    values: Mapping[str, str]
    end: int
    listed: tuple[str, ...] = ()

    def text(self, *names: str) -> str:
        """Return the value of a field, which may have several names; empty if it is absent."""
        return next((self.values[name] for name in names if self.values.get(name)), "")

    def wrong(self, name: str, expected: str) -> UserError:
        """Return the error that a field is not what was expected."""
        value = self.values.get(name)
        found = f"has {name!r} {value[:40]!r}" if value else f"has no {name!r}"
        return UserError(f"{self.path} {found}, expected {expected}: export it again")

    def numbers(self, count: int, *names: str) -> list[float] | None:
        """Return finite numbers of at most 1e9; None if the field is absent."""
        text = self.text(*names)
        if not text:
            return None
        values = _floats(text.split())
        if values is None or len(values) != count:
            raise self.wrong(self._name(names), f"{count} numbers of at most {_LARGEST_NUMBER:g}")
        return values

    def wholes(self, count: int, low: int, high: int, *names: str) -> list[int] | None:
        """Return whole numbers from `low` to `high`; None if the field is absent."""
        text = self.text(*names)
        if not text:
            return None
        words = text.split()
        if len(words) != count or not all(re.fullmatch(r"[+-]?\d{1,19}", word) for word in words):
            raise self.wrong(self._name(names), f"{count} whole numbers from {low} to {high}")
        values = [int(word) for word in words]
        if min(values) < low or max(values) > high:
            raise self.wrong(self._name(names), f"{count} whole numbers from {low} to {high}")
        return values

    def whole(self, default: int, low: int, high: int, *names: str) -> int:
        """Return a whole number from `low` to `high`."""
        values = self.wholes(1, low, high, *names)
        return default if values is None else values[0]

    def choice(self, choices: Mapping[str, Value], *names: str) -> Value:
        """Return the meaning of one of some words."""
        text = " ".join(self.text(*names).split())
        if text not in choices:
            known = ", ".join(list(choices)[:8])
            raise self.wrong(self._name(names), f"one of {known}{', ...' if len(choices) > 8 else ''}")
        return choices[text]

    def truth(self, *names: str, default: bool = False) -> bool:
        """Return a truth value as MetaIO does, which reads the first letter."""
        text = self.text(*names)
        return text[:1] in ("T", "t", "1") if text else default

    def _name(self, names: Sequence[str]) -> str:
        return next((name for name in names if self.values.get(name)), names[0])


def read_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Read a header and check its fields, and that the files with the voxels exist.

    Raises:
        UserError: the file cannot be read, is of another format, or a field is missing or invalid.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_LIMIT)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give a readable file") from None
    if re.match(rb"NRRD000\d\s", start):
        return _nrrd(*_split_nrrd(Path(path), start))
    return _meta_image(_split_meta_image(Path(path), start))


# NRRD


def _split_nrrd(path: Path, start: bytes) -> tuple[Fields, dict[str, str]]:
    """Return the fields and the key/value pairs."""
    values: dict[str, str] = {}
    pairs: dict[str, str] = {}
    end = start.find(b"\n") + 1 or len(start)
    while end < len(start):
        line, end = _line(start, end)
        if not line:
            break  # an empty line ends the header
        name, _, value = line.partition(":")
        if line.startswith("#"):
            continue
        if value.startswith("="):
            pairs[name] = value[1:].replace("\\n", "\n").replace("\\\\", "\\")
            continue
        _add(path, values, name.strip().lower(), value.strip())
        if name.strip().lower() in ("data file", "datafile") and value.split()[:1] == ["LIST"]:
            return Fields(path, values, len(start), _rest(start, end)), pairs
    return Fields(path, values, end), pairs


def _nrrd(fields: Fields, pairs: Mapping[str, str]) -> ImageHeader:
    count = fields.whole(0, 1, _MOST_AXES, "dimension")
    if not count:
        raise fields.wrong("dimension", "the number of axes")
    sizes = fields.wholes(count, 1, _LONGEST_AXIS, "sizes")
    if sizes is None:
        raise fields.wrong("sizes", f"{count} whole numbers")
    types = {name: dtype for dtype, names in _NRRD_TYPES.items() for name in names}
    dtype = np.dtype(fields.choice(types, "type"))
    encoding = fields.choice(_NRRD_ENCODINGS, "encoding") if fields.text("encoding") else RAW
    if dtype.itemsize > 1 and encoding != TEXT:
        dtype = dtype.newbyteorder(fields.choice({"little": "<", "big": ">"}, "endian"))
    directions = _directions(fields, count)
    kinds = _kinds(fields, count)
    parts_of_voxel = [
        axis
        for axis in range(count)
        if kinds[axis] not in _DOMAIN_KINDS or (directions is not None and directions[axis] is None)
    ]
    if len(parts_of_voxel) > 1:
        raise UserError(
            f"{fields.path} has several axes that are not axes of space, expected one real number per voxel"
        )
    components = sizes[parts_of_voxel[0]] if parts_of_voxel else 1
    shape = tuple(size for axis, size in enumerate(sizes) if axis not in parts_of_voxel)
    affine = None
    if len(shape) == 3:
        affine = _nrrd_affine(fields, directions, [axis for axis in range(count) if axis not in parts_of_voxel])
    return ImageHeader(
        path=fields.path,
        shape=shape,
        components=components,
        components_first=parts_of_voxel == [0],
        dtype=dtype,
        affine=affine,
        parts=_nrrd_parts(fields, encoding, int(np.prod(sizes, dtype=object)) * dtype.itemsize, sizes[-1]),
        units=tuple(unit.strip() for unit in re.findall(r'"([^"]*)"', fields.text("space units"))),
        pairs=pairs,
    )


def _kinds(fields: Fields, count: int) -> list[str]:
    kinds = fields.text("kinds").lower().split()
    if kinds and len(kinds) != count:
        raise fields.wrong("kinds", f"{count} kinds of axes")
    return kinds or ["???"] * count


def _directions(fields: Fields, count: int) -> list[list[float] | None] | None:
    """Return the vector of each axis of the file; None where an axis has none, and if the field is absent."""
    text = fields.text("space directions")
    if not text:
        return None
    tokens = re.findall(r"none|\([^()]*\)", text)
    if len(tokens) != count or re.sub(r"none|\([^()]*\)|\s", "", text):
        raise fields.wrong("space directions", f"{count} vectors, or 'none'")
    return [None if token == "none" else _vector(fields, "space directions", token) for token in tokens]


def _vector(fields: Fields, name: str, text: str) -> list[float]:
    values = _floats(text.strip("() ").split(","))
    if values is None:
        raise fields.wrong(name, f"vectors of numbers of at most {_LARGEST_NUMBER:g}")
    return values


def _nrrd_affine(fields: Fields, directions: list[list[float] | None] | None, axes: Sequence[int]) -> np.ndarray:
    """Return the affine to RAS mm, as ITK reads it."""
    space = fields.text("space").lower()
    signs = np.ones(3)
    if space:
        if space not in _LPS_SIGNS:
            raise fields.wrong("space", "a space of three dimensions, such as left-posterior-superior")
        signs = np.array(_LPS_SIGNS[space], float)
    elif fields.whole(3, 1, _MOST_AXES, "space dimension") != 3:
        raise fields.wrong("space dimension", "3")
    lps = np.eye(4)
    if directions is not None:
        vectors = [directions[axis] for axis in axes]
        if any(vector is None or len(vector) != 3 for vector in vectors):
            raise fields.wrong("space directions", "vectors of three numbers")
        lps[:3, :3] = np.array(vectors, float).T * signs[:, None]
    elif space or fields.text("space dimension", "space origin"):
        raise fields.wrong("space directions", "a vector for each axis")
    elif text := fields.text("spacings"):
        words = text.split()
        chosen = [words[axis] for axis in axes] if len(words) > max(axes) else []
        spacings = _floats(["1" if word.lower() == "nan" else word for word in chosen])
        if not spacings:
            raise fields.wrong("spacings", "a number for each axis")
        lps[:3, :3] = np.diag(spacings)
    if text := fields.text("space origin"):
        origin = _vector(fields, "space origin", text)
        if len(origin) != 3:
            raise fields.wrong("space origin", "a vector of three numbers")
        lps[:3, 3] = np.array(origin) * signs
    elif set(fields.text("axis mins", "axismins").lower().split()) - {"nan"}:
        raise fields.wrong("space origin", "one, in place of 'axis mins'")
    return LPS_TO_RAS @ lps


def _nrrd_parts(fields: Fields, encoding: str, size: int, last: int) -> tuple[StoredVoxels, ...]:
    paths = _data_files(fields, fields.text("data file", "datafile"), ("LIST",), last, encoding)
    lines = fields.whole(0, 0, 2**20, "line skip", "lineskip")
    skip = fields.whole(0, -1, 2**40, "byte skip", "byteskip")
    if skip < 0 and encoding != RAW:
        raise _unknown_skip(fields)
    parts = []
    for path in paths:
        start = _after_lines(path, fields.end if path == fields.path else 0, lines)
        if skip < 0:
            parts.append(StoredVoxels(path, encoding, _from_end(path, size // len(paths))))
        elif encoding == RAW:
            parts.append(StoredVoxels(path, encoding, start + skip))
        else:
            parts.append(StoredVoxels(path, encoding, start, skip))
    return tuple(parts)


# MetaImage


def _split_meta_image(path: Path, start: bytes) -> Fields:
    values: dict[str, str] = {}
    end = 0
    while end < len(start):
        line, end = _line(start, end)
        name, _, value = line.partition("=")
        _add(path, values, name.strip().lower(), value.strip())
        if name.strip() == "ElementDataFile":  # the last field
            if value.split()[:1] == ["LIST"]:
                return Fields(path, values, len(start), _rest(start, end))
            break
    return Fields(path, values, end)


def _meta_image(fields: Fields) -> ImageHeader:
    count = fields.whole(0, 1, _MOST_AXES, "ndims")
    if not count:
        raise UserError(f"{fields.path} has no NDims, expected a NRRD or MetaImage file: export it again")
    sizes = fields.wholes(count, 1, _LONGEST_AXIS, "dimsize")
    if sizes is None:
        raise fields.wrong("dimsize", f"{count} whole numbers")
    if fields.text("objecttype") not in ("", "Image"):
        raise fields.wrong("objecttype", "Image")
    channels = fields.whole(1, 1, 2**16, "elementnumberofchannels")
    arrays = {f"{name}_ARRAY": dtype for name, dtype in _META_TYPES.items()}
    dtype = np.dtype(fields.choice({**_META_TYPES, **arrays}, "elementtype"))
    names = ("binarydatabyteordermsb", "elementbyteordermsb")
    encoding = TEXT
    if fields.truth("binarydata", default=True):
        encoding = "zlib" if fields.truth("compresseddata") else RAW
        dtype = dtype.newbyteorder(">" if any(fields.truth(name) for name in names) else "<")
    size = int(np.prod(sizes, dtype=object)) * channels * dtype.itemsize
    return ImageHeader(
        path=fields.path,
        shape=tuple(sizes),
        components=channels,
        components_first=True,
        dtype=dtype,
        affine=_meta_affine(fields) if count == 3 else None,
        parts=_meta_parts(fields, encoding, size, sizes[-1]),
    )


def _meta_affine(fields: Fields) -> np.ndarray:
    """Return the affine to RAS mm. The rows of the matrix are the axes of the image, in LPS."""
    matrix = fields.numbers(9, "transformmatrix", "rotation", "orientation")
    spacing = fields.numbers(3, "elementspacing") or fields.numbers(3, "elementsize") or [1.0] * 3
    lps = np.eye(4)
    lps[:3, :3] = (np.eye(3) if matrix is None else np.reshape(matrix, (3, 3)).T) * spacing
    lps[:3, 3] = fields.numbers(3, "offset", "origin", "position") or [0.0] * 3
    return LPS_TO_RAS @ lps


def _meta_parts(fields: Fields, encoding: str, size: int, last: int) -> tuple[StoredVoxels, ...]:
    name = fields.text("elementdatafile")
    if not name:
        raise fields.wrong("elementdatafile", "the file of the voxels, or LOCAL")
    paths = _data_files(fields, name, ("LIST", "LIST 2", "LIST 2D"), last, encoding)
    skip = fields.whole(0, -1, 2**40, "headersize")
    if skip < 0 and encoding != RAW:
        raise _unknown_skip(fields)
    compressed = fields.whole(0, 0, 2**48, "compresseddatasize") if encoding == "zlib" else 0
    parts = []
    for path in paths:
        start = skip or (fields.end if path == fields.path else 0)
        if skip < 0:
            start = _from_end(path, size // len(paths))
        parts.append(StoredVoxels(path, encoding, start, 0, compressed or None))
    return tuple(parts)


# Parts of both


def _line(start: bytes, at: int) -> tuple[str, int]:
    """Return the line at a position, and the position after it."""
    stop = start.find(b"\n", at)
    stop = len(start) if stop < 0 else stop
    return start[at:stop].decode("utf-8", "surrogateescape").strip(), min(stop + 1, len(start))


def _rest(start: bytes, at: int) -> tuple[str, ...]:
    """Return the lines after a position that are not empty."""
    text = start[at:].decode("utf-8", "surrogateescape")
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def _add(path: Path, values: dict[str, str], name: str, value: str) -> None:
    """Add a field; readers differ in which one of two fields of one name they use."""
    if values.setdefault(name, value) != value and name.isprintable():
        raise UserError(f"{path} has two fields {name[:40]!r} with different values, expected one: export it again")


def _floats(words: Sequence[str]) -> list[float] | None:
    """Return finite numbers of at most 1e9; None if a word is something else."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if values and all(abs(value) <= _LARGEST_NUMBER for value in values) else None


def _data_files(fields: Fields, name: str, lists: Sequence[str], last: int, encoding: str) -> list[Path]:
    """Return the files with the voxels.

    Raises:
        UserError: a name is not the plain name of a file in the folder of the header or below, or a file is missing.
    """
    if name.upper() in ("", "LOCAL"):
        return [fields.path]
    if name.split()[0] != "LIST":
        return [_data_file(fields.path, name)]
    if encoding != RAW:
        raise UserError(
            f"{fields.path} has compressed voxels or text in several files, expected one: save it as one file"
        )
    if " ".join(name.split()) not in lists or len(fields.listed) != last:
        raise UserError(
            f"{fields.path} has the data file {name[:40]!r} and {len(fields.listed)} files, expected one for each of "
            f"the {last} slices of its last axis: save it as one file"
        )
    return [_data_file(fields.path, line) for line in fields.listed]


def _data_file(header: Path, name: str) -> Path:
    parts = Path(name).parts
    plain = name.isprintable() and "%" not in name and not Path(name).is_absolute() and ".." not in parts
    if not plain or max(map(len, parts), default=_NAME + 1) > _NAME or len(name) > 4 * _NAME:
        raise UserError(
            f"{header} has the data file {name[:40]!r}, expected the plain name of one file in its folder: save the "
            "volume as one file"
        )
    path = header.parent / name
    try:
        found = path.is_file()  # not a pipe or a device
    except OSError:
        found = False
    if not found:
        raise UserError(f"{header} is a header without data, expected {path}: copy that file there too")
    return path


def _from_end(path: Path, size: int) -> int:
    return max(0, path.stat().st_size - size)


def _unknown_skip(fields: Fields) -> UserError:
    return UserError(f"{fields.path} skips a header of unknown size, expected raw voxels: save it as one .nrrd file")


def _after_lines(path: Path, start: int, lines: int) -> int:
    if not lines:
        return start
    check_regular(path, "give an image file")
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(lines):
            if not file.readline(_LIMIT):
                break
        return file.tell()
