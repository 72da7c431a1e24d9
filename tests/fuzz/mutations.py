"""Mutations of files: bytes, and the structure of texts, headers and containers.

A `Target` names the files of a kind, the part of them that changes (`View`) and how it changes (`Editor`). A view
packs the changed part again with right lengths and checksums, so that the damage reaches the code behind them.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import os
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.values import NUMBERS, TEXTS, Edit, draw_edits

Rebuild = Callable[[bytes], bytes]
View = Callable[[bytes, random.Random], tuple[bytes, Rebuild]]
Editor = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """What may change of a kind: files by pattern, their part, and the editors of this part."""

    pattern: str
    editors: tuple[Editor, ...]
    view: View = lambda data, chance: (data, lambda part: part)


# Editors of bytes


def flip(data: bytes, chance: random.Random) -> bytes:
    """Flip some bits; half of them near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if changed:
            changed[_place(changed, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, chance: random.Random) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes with the extremes of integers and floats, in both byte orders."""
    changed = bytearray(data)
    order, code = chance.choice("<>"), chance.choice("bBhHiIqQfd")
    if code in "fd":
        value: float = chance.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30))
    else:
        bits = 8 * struct.calcsize(f"<{code}")
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if code.islower() else (0, 2**bits - 1)
        value = chance.choice((0, 1, low, high, high - 1, high // 2, min(high, 2**20)))
    packed = struct.pack(order + code, value)
    start = _place(changed, chance) if changed else 0
    changed[start : start + len(packed)] = packed
    return bytes(changed)


def truncate(data: bytes, chance: random.Random) -> bytes:
    """Cut the end off; often a few bytes, or all but a few."""
    return data[: chance.choice((0, chance.randint(0, min(16, len(data))), chance.randint(0, len(data)), -1, -7))]


def insert(data: bytes, chance: random.Random) -> bytes:
    """Insert zeros, extremes, random bytes, or a copy of another part."""
    start = _place(data, chance) if data else 0
    copied = chance.randint(0, len(data))
    block = chance.choice(
        (
            bytes(chance.choice((1, 4, 100, 70000))),
            b"\xff" * chance.choice((1, 4, 8, 512)),
            chance.randbytes(chance.choice((1, 16, 1000))),
            data[copied : copied + chance.choice((1, 16, 512, 5000))],
        )
    )
    return data[:start] + block + data[start:]


def remove(data: bytes, chance: random.Random) -> bytes:
    """Remove a part."""
    start = _place(data, chance) if data else 0
    return data[:start] + data[start + chance.choice((1, 2, 8, 100, 1000)) :]


def _place(data: bytes | bytearray, chance: random.Random) -> int:
    return chance.randrange(min(len(data), 512) if chance.random() < 0.5 else len(data))


BYTES: tuple[Editor, ...] = (flip, overwrite, truncate, insert, remove)


# Editors of texts


def numbers(data: bytes, chance: random.Random) -> bytes:
    """Replace one number of a text by another one, or by a word."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?([eE][+-]?\d+)?", data[: 1 << 16]))
    if not found:
        return flip(data, chance)
    match = chance.choice(found)
    value = as_text(chance.choice((*NUMBERS, *NUMBERS, *TEXTS)))
    return data[: match.start()] + value + data[match.end() :]


def as_text(value: Any) -> bytes:
    """Return a value as bytes of a text; lone surrogates become their (wrong) UTF-8."""
    text = value if isinstance(value, str) else _json_text(value) if isinstance(value, list | dict) else _digits(value)
    return _nested(text).encode("utf-8", "surrogatepass")


def _digits(value: Any) -> str:
    return "1" + "0" * 400 if value == 10**400 else str(value)


def _nested(text: str) -> str:
    match = re.fullmatch(r"@deep (\d+)", text)
    return "[" * int(match[1]) + "]" * int(match[1]) if match else text


def edit_json(data: bytes, chance: random.Random) -> bytes:
    """Change elements of a JSON text."""
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return chance.choice(BYTES)(data, chance)
    for edit in draw_edits(chance):
        _edit_json(root, edit)
    text = _json_text(root[0], escapes=chance.random() < 0.5) if root else ""
    return text.encode("utf-8", "surrogatepass")


def _json_text(value: Any, escapes: bool = True) -> str:
    text = json.dumps(value, ensure_ascii=escapes)
    return re.sub(r'"@deep (\d+)"', lambda match: "[" * int(match[1]) + "]" * int(match[1]), text)


def _edit_json(root: list[Any], edit: Edit) -> None:
    places = list(_places(root))
    if not places:
        return
    parent, key = places[edit.where % len(places)]
    other_parent, other_key = places[edit.other % len(places)]
    if edit.action == "delete":
        del parent[key]
    elif edit.action == "repeat" and isinstance(parent, list):
        parent.extend([parent[key]] * (1 + edit.other % 3))
    elif edit.action in ("rename", "repeat") and isinstance(parent, dict):
        name = edit.value if isinstance(edit.value, str) else str(other_key)
        parent[name] = parent[key] if edit.action == "repeat" else parent.pop(key)
    elif edit.action == "add" and isinstance(parent[key], list):
        parent[key].append(edit.value)
    elif edit.action == "add" and isinstance(parent[key], dict):
        parent[key][str(other_key)] = edit.value
    elif edit.action == "swap":
        first, second = json.dumps(parent[key]), json.dumps(other_parent[other_key])  # copies, never a circle
        parent[key] = json.loads(second)
        with contextlib.suppress(KeyError, IndexError):
            other_parent[other_key] = json.loads(first)
    elif edit.action == "wrap":
        parent[key] = [parent[key]]
    else:
        parent[key] = edit.value


def _places(value: Any) -> Any:
    """Yield each element of nested lists and objects as its container and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, element in list(items):
        yield value, key
        if isinstance(element, list | dict):
            yield from _places(element)


def edit_table(data: bytes, chance: random.Random) -> bytes:
    """Change cells, rows and columns of a CSV table."""
    rows = [list(row) for row in csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""))]
    for edit in draw_edits(chance):
        if not rows:
            break
        row = rows[0] if edit.other % 4 == 0 else rows[edit.where % len(rows)]
        column = edit.other % max(len(row), 1)
        cell = _nested(edit.value) if isinstance(edit.value, str) else _digits(edit.value)
        if edit.action == "delete":
            if edit.other % 2:
                rows.remove(row)
            else:
                for each in rows:
                    del each[column : column + 1]
        elif edit.action == "repeat":
            rows.extend([list(row)] * (1 + edit.other % 3))
        elif edit.action == "add":
            row.append(cell)
        elif edit.action == "swap" and row:
            other = edit.where % len(row)
            row[column], row[other] = row[other], row[column]
        elif row:
            row[column] = cell
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def edit_lines(data: bytes, chance: random.Random) -> bytes:
    """Change lines `key: value`, `key = value` or `key:=value` of the header of an image."""
    lines = data.split(b"\n")
    for edit in draw_edits(chance):
        at, value = edit.where % len(lines), as_text(edit.value)
        key, separator, text = _key(lines[at])
        if edit.action == "delete":
            del lines[at : at + 1]
        elif edit.action == "repeat":
            lines.insert(edit.other % len(lines), lines[at])
        elif edit.action == "rename":
            lines[at] = value[:2000] + separator + text
        elif edit.action == "add":
            lines.insert(at, _key(lines[edit.other % len(lines)])[0] + separator + value)
        elif edit.action == "swap":
            lines[at] = key + separator + _key(lines[edit.other % len(lines)])[2]
        elif edit.action == "token" and text.split():
            words = text.split()
            words[edit.other % len(words)] = value
            lines[at] = key + separator + b" ".join(words)
        else:
            lines[at] = key + separator + value
        lines = lines or [b""]
    return b"\n".join(lines)


def _key(line: bytes) -> tuple[bytes, bytes, bytes]:
    match = re.match(rb"([^:=]*)(:= ?|: ?| ?= ?)(.*)", line, re.DOTALL)
    return (match[1], match[2], match[3]) if match else (line, b": ", b"")


# Editors of binary formats


def edit_nifti(data: bytes, chance: random.Random) -> bytes:
    """Set fields of a NIfTI header to extremes."""
    import nibabel as nib

    kind = nib.Nifti2Header if data[:4] == (540).to_bytes(4, "little") else nib.Nifti1Header
    dtype = kind.template_dtype.newbyteorder("<")
    if len(data) < dtype.itemsize:
        return flip(data, chance)
    header = np.frombuffer(data[: dtype.itemsize], dtype).copy()
    for _ in range(chance.choice((1, 1, 2, 3))):
        field = header[chance.choice(dtype.names)]
        if field.dtype.kind == "S":
            field[...] = chance.randbytes(3)
            continue
        flat = field.reshape(-1)
        value = chance.choice(NUMBERS)
        if field.dtype.kind == "f":
            with np.errstate(all="ignore"), contextlib.suppress(OverflowError):
                flat[chance.randrange(flat.size)] = value
        else:
            limits = np.iinfo(field.dtype)
            whole = int(value) if np.isfinite(float(value) if abs(value) < 1e300 else np.inf) else limits.max
            flat[chance.randrange(flat.size)] = min(max(whole, int(limits.min)), int(limits.max))
    return header.tobytes() + data[dtype.itemsize :]


def edit_dicom(data: bytes, chance: random.Random) -> bytes:
    """Change elements of a DICOM data set, sequences and file meta information included."""
    import pydicom

    try:
        with _pydicom_quiet():
            ds = pydicom.dcmread(io.BytesIO(data))
            for edit in draw_edits(chance):
                _edit_element(ds, edit, chance)
            out = io.BytesIO()
            ds.save_as(out)
            return out.getvalue()
    except Exception:  # pydicom cannot write it
        return chance.choice(BYTES)(data, chance)


def _edit_element(ds: Any, edit: Edit, chance: random.Random) -> None:
    import pydicom

    elements = [(each, element) for each in (ds.file_meta, ds) for element in each]
    for element in ds:
        if element.VR == "SQ":
            elements += [(item, inner) for item in element.value for inner in item]
    owner, element = elements[edit.where % len(elements)]
    if edit.action == "delete":
        del owner[element.tag]
        return
    if element.VR == "SQ":
        items = list(element.value)
        element.value = pydicom.Sequence(items * 3 if edit.action == "repeat" else items[: edit.other % 2])
        return
    value: Any = edit.value
    if element.VR in ("US", "SS", "UL", "SL"):
        high = 2 ** (16 if element.VR in ("US", "SS") else 32) - 1
        value = chance.choice((0, 1, 2, 3, 8, 12, 15, 16, 17, 32, 64, high, high // 2, 40000 & high))
    elif element.VR in ("OB", "OW", "UN", "OW or OB"):
        value = chance.choice(BYTES)(element.value, chance) if isinstance(element.value, bytes) else b""
    elif element.VR in ("FL", "FD"):
        value = float(chance.choice(NUMBERS[-15:]))
    elif element.VR in ("DS", "IS") and edit.action in ("replace", "token"):
        value = [_digits(each)[:60] for each in chance.choices(NUMBERS, k=chance.choice((1, 2, 3, 6)))]
    else:
        value = value if isinstance(value, str) else _digits(value)
        value = value.encode("utf-8", "replace").decode()[:60000]
    # As text, because pydicom would check the numbers of DS and IS.
    vr = "LO" if element.VR in ("DS", "IS") else element.VR
    changed = pydicom.DataElement(element.tag, vr, value)
    if vr != element.VR:
        changed.VR = element.VR if edit.other % 2 else "UN"
        changed._value = value if changed.VR != "UN" else "\\".join(np.atleast_1d(value)).encode()
    owner[element.tag] = changed


@contextlib.contextmanager
def _pydicom_quiet() -> Any:
    import warnings

    import pydicom

    mode = pydicom.config.settings.writing_validation_mode, pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom.config.settings.writing_validation_mode, pydicom.config.settings.reading_validation_mode = mode


PICKLES = (  # code, memory, and circles
    b"cos\nsystem\n(S'touch fuzz-ran-code'\ntR.",
    b'cbuiltins\neval\n(S\'open("fuzz-ran-code","w")\'\ntR.',
    b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (10**10).to_bytes(5, "little") + b"\x85R.",
    b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b".",
    b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
    b"\x80\x02]q\x00h\x00a.",
    b"(" * 5000 + b".",
    b"\x80\x02}q\x00h\x00h\x00s.",
    b"ctorch\nload\n(S'x'\ntR.",
)


def edit_pickle(data: bytes, chance: random.Random) -> bytes:
    """Replace a pickle by a hostile one, or change its bytes."""
    if chance.random() < 0.3:
        hostile = chance.choice(PICKLES)
        return hostile if chance.random() < 0.7 else data[: chance.randint(0, len(data))] + hostile
    return chance.choice(BYTES)(data, chance)


# Views: parts that are packed again


def compressed(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]) -> View:
    """Return the view of a file that is compressed as a whole."""

    def view(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
        return unpack(data), pack

    return view


GZIP = compressed(gzip.decompress, lambda part: gzip.compress(part, 1, mtime=0))
BZIP2 = compressed(bz2.decompress, lambda part: bz2.compress(part, 1))
ZLIB = compressed(zlib.decompress, lambda part: zlib.compress(part, 1))


def text_header(end: bytes) -> View:
    """Return the view of the text before and including the first `end` of a file."""

    def view(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
        header, found, voxels = data.partition(end)
        return header, lambda part: part + found + voxels

    return view


NRRD_HEADER = text_header(b"\n\n")


def meta_header(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
    """View the header of a `.mha` file, whose last line names the file of the voxels."""
    match = re.search(rb"ElementDataFile = [^\n]*", data)
    end = match.end() if match else len(data)
    return data[:end], lambda part: part + data[end:]


def nrrd_voxels(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]) -> View:
    """Return the view of the decompressed voxels of a NRRD file."""

    def view(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
        header, found, voxels = data.partition(b"\n\n")
        return unpack(voxels), lambda part: header + found + pack(part)

    return view


def one_line(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
    """View one line of a text."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    return lines[at], lambda part: b"\n".join([*lines[:at], part, *lines[at + 1 :]])


def safetensors_header(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
    """View the JSON header of a `.safetensors` file."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], lambda part: len(part).to_bytes(8, "little") + part + data[8 + length :]


def safetensors_metadata(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
    """View one JSON text in the metadata of a `.safetensors` file."""
    header, rebuild = safetensors_header(data, chance)
    record = json.loads(header)
    entries = record.get("__metadata__") or {"none": "{}"}
    name = chance.choice(sorted(entries))

    def packed(part: bytes) -> bytes:
        text = part.decode("utf-8", "surrogatepass" if chance.random() < 0.5 else "replace")
        changed = {**record, "__metadata__": {**entries, name: text}}
        return rebuild(json.dumps(changed).encode())

    return entries[name].encode(), packed


def zip_member(pattern: str, method: int) -> View:
    """Return the view of one member of a zip file, which is packed again with `method`."""

    def view(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        name = chance.choice([each for each in sorted(members) if re.search(pattern, each)])

        def packed(part: bytes) -> bytes:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", method) as archive:
                for each, content in members.items():
                    archive.writestr(each, part if each == name else content)
            return out.getvalue()

        return members[name], packed

    return view


def tar_header(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
    """View one header of a tar file, whose checksum is made right again."""
    starts = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"] or [0]
    at = chance.choice(starts)

    def packed(part: bytes) -> bytes:
        block = bytearray(part[:512].ljust(512, b"\0"))
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return data[:at] + bytes(block) + data[at + 512 :]

    return data[at : at + 512], packed


def edit_tar_header(data: bytes, chance: random.Random) -> bytes:
    """Set the name, size, type or link of a member."""
    block = bytearray(data.ljust(512, b"\0"))
    start, length = chance.choice(((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (345, 155)))
    value = as_text(chance.choice(TEXTS))
    if start == 124:
        value = chance.choice(
            (b"%011o" % chance.choice((0, 1, 2**20, 2**33 - 1)), b"\x80" + b"\xff" * 11, b"-0000000001")
        )
    if start == 156:
        value = bytes([chance.choice(b"0123456LKxgSDVN\x00\xff")])
    block[start : start + length] = value[:length].ljust(length, b"\0")
    return bytes(block)


def dicom_deflated(data: bytes, chance: random.Random) -> tuple[bytes, Rebuild]:
    """View the inflated data set of a deflated DICOM file."""
    start = 144 + int.from_bytes(data[140:144], "little")
    inflated = zlib.decompress(data[start:], -zlib.MAX_WBITS)

    def packed(part: bytes) -> bytes:
        deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return data[:start] + deflate.compress(part) + deflate.flush()

    return inflated, packed


# The mutation of an input


def mutate(
    folder: Path, path: Path, targets: tuple[Target, ...], chance: random.Random, replaces: bool
) -> tuple[Path, list[str]]:
    """Change the files of an input in place.

    Args:
        folder: of the input.
        path: that the reader gets.
        targets: what may change.
        chance: decides.
        replaces: a file may become a pipe, a link or a folder.

    Returns:
        The path to read, and the names of the changes.
    """
    names = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        target = chance.choice(targets)
        files = sorted(file for file in folder.rglob(target.pattern) if file.is_file() and not file.is_symlink())
        if not files:
            continue
        file, editor = chance.choice(files), chance.choice(target.editors)
        data = file.read_bytes()
        try:
            part, rebuild = target.view(data, chance)
            data = rebuild(editor(part, chance))
        except Exception:  # an earlier change broke the container
            editor = chance.choice(BYTES)
            data = editor(data, chance)
        file.write_bytes(data)
        names.append(f"{editor.__name__} {file.name}")
    if replaces and chance.random() < 0.04:
        path, name = _replace(folder, path, chance)
        names.append(name)
    return path, names


def _replace(folder: Path, path: Path, chance: random.Random) -> tuple[Path, str]:
    """Replace a file of the input by something that is not a file, or rename the input."""
    file = chance.choice(sorted(each for each in folder.rglob("*") if each.is_file()) or [path])
    how = chance.choice(("missing", "folder", "pipe", "device", "circle", "proc", "rename"))
    if how == "rename":
        ending = path.name[path.name.find(".") :] if "." in path.name else ""
        stem = chance.choice(("a\nb", "\x1b[31m", "%s%n", " ", "x" * 200, "é", "\udcff", "-x", "a'b", "a;b"))
        renamed = path.with_name(stem + ending)
        path.rename(renamed)
        return renamed, how
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how != "missing":
        file.symlink_to({"device": "/dev/zero", "circle": file.name, "proc": "/proc/self/mem"}[how])
    return path, f"{how} {file.name}"
