"""Reader of small files that users may have written or changed: JSON, CSV and text.

A file is read only if it is a regular file of limited size, never a pipe, a device or a file of `/proc`. Its text is
UTF-8, and its JSON has a limited depth. `typed` then turns plain values into dataclasses and typed dictionaries, with
pydantic and with the ranges that their fields declare (`config.Range`). Each error is a `UserError` of one sentence
that names the file, the field and the fix. Images and weights have readers of their own.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast, get_type_hints

import pydantic
import pydantic_core

from sam2_3dmed_jax.config import Range, Regexes
from sam2_3dmed_jax.errors import UserError, cut

MAX_BYTES = 64 << 20  # default limit of a file; what people write has kilobytes
REGULAR = "check the path"

FilePath = str | os.PathLike[str]
Typed = TypeVar("Typed")

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")
_EXPECTED = {  # pydantic's words
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "a valid dictionary": "an object",
}


def check_regular(path: FilePath, fix: str = REGULAR) -> None:
    """Check that an existing path is a regular file, because opening a pipe waits for ever and a device has no end.

    Raises:
        UserError: it is a pipe, a device, a socket or a folder.
        OSError: it does not exist or cannot be reached.
    """
    _check_mode(path, os.stat(path).st_mode, fix)


def read_bytes(path: FilePath, fix: str, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        fix: what the user can do about a wrong file, such as "give a JSON file of prompts".
        limit: largest size in bytes.

    Raises:
        UserError: the file does not exist, is not a regular file, is too large, or cannot be read.
    """
    with _opened(path, fix) as (file, size):
        if size > limit:
            raise UserError(f"{path} has {size / 2**20:.1f} MiB, expected at most {limit >> 20} MiB; {fix}")
        data = file.read(max(size, 1))
    if len(data) > size:  # files of /proc have no size, and some of them no end
        raise UserError(f"{path} is a file of the system; {fix}")
    return data


def read_start(path: FilePath, count: int, fix: str) -> bytes:
    """Return at most `count` bytes from the start of a regular file of any size.

    Raises:
        UserError: as `read_bytes`.
    """
    with _opened(path, fix) as (file, _):
        return file.read(count)


@contextlib.contextmanager
def _opened(path: FilePath, fix: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, with its size, and turn errors of the operating system into `UserError`s."""
    try:
        check_regular(path, fix)
        # Without blocking, because the path may have become a pipe in the meantime.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            _check_mode(path, status.st_mode, fix)
            yield file, status.st_size
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {fix}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); {fix}") from None


def read_text(path: FilePath, fix: str, limit: int = MAX_BYTES) -> str:
    """Return the text of a regular file in UTF-8, with or without a byte order mark; arguments as in `read_bytes`.

    Raises:
        UserError: as `read_bytes`, or the file is not UTF-8.
    """
    return _text(read_bytes(path, fix, limit), str(path), fix, "a text")


def read_json(path: FilePath, fix: str, limit: int = MAX_BYTES, finite: bool = True) -> Any:
    """Return the plain values of a JSON file; arguments as in `read_bytes` and `parse_json`.

    Raises:
        UserError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, fix, limit), str(path), fix, finite)


def parse_json(data: bytes | str, where: str, fix: str, finite: bool = True) -> Any:
    """Return the plain values of a JSON text in UTF-8 that is nested at most 200 deep.

    Args:
        data: the text.
        where: its file, for messages.
        fix: as in `read_bytes`.
        finite: refuse NaN and Infinity, which are not JSON; some files that this project writes for itself have them.

    Raises:
        UserError: it is not JSON.
    """
    if isinstance(data, bytes):
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return pydantic_core.from_json(data, allow_inf_nan=not finite)
    except ValueError as error:
        reason = cut(str(error), 100)
    if finite:
        with contextlib.suppress(ValueError):
            pydantic_core.from_json(data)
            reason = "NaN is not a number"
    raise UserError(f"{where} is not JSON ({reason}); {fix}")


@dataclass(frozen=True)
class Table:
    """A table with a header; every row has a cell for each column, which is empty where the file has none."""

    path: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]  # number of the line, and its cells by column

    def __iter__(self) -> Iterator[dict[str, str]]:
        """Yield the cells of each row."""
        return (cells for _, cells in self.rows)


def read_table(path: FilePath, fix: str, limit: int = MAX_BYTES, strip: bool = False) -> Table:
    """Read a CSV file with a header; empty rows are left out.

    Args:
        path: the file.
        fix: as in `read_bytes`.
        limit: largest size in bytes.
        strip: remove spaces around cells, which people write after commas.

    Raises:
        UserError: as `read_text`; it is not CSV; two columns have the same name; or a row has more cells than columns.
    """
    text = _text(read_bytes(path, fix, limit), str(path), fix, "a CSV table")
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=strip)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row] if strip else row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV table ({error}); {fix}") from None
    header = lines[0][1] if lines else []
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path} has two columns '{cut(twice[0], 60)}'; {fix}")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            raise UserError(f"{path}, line {number}: it has more cells than columns; put cells with commas in quotes")
        if any(cells):
            rows.append((number, dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))))
    return Table(str(path), tuple(header), tuple(rows))


def number(text: str, where: str, fix: str, limit: float = 1e15) -> float:
    """Return the number in a cell of a table; NaN for an empty cell.

    Args:
        text: the cell.
        where: file, line and column, for messages.
        fix: as in `read_bytes`.
        limit: largest absolute value; sums of squares of such numbers are finite.

    Raises:
        UserError: it is not a number, infinite or too large.
    """
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if abs(value) > limit:
        raise UserError(f"{where} is '{cut(text, 40)}', expected a number; {fix}")
    return value


def whole_number(text: str, where: str, fix: str, high: int = 10**9) -> int:
    """Return the whole number in a cell of a table, from 0; arguments as in `number`.

    Raises:
        UserError: it is not one, or larger than `high`.
    """
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) > high:
        raise UserError(f"{where} is '{cut(text, 40)}', expected a whole number from 0 to {high}; {fix}")
    return int(text)


def plain(value: object) -> Any:
    """Return a value as it is read back from JSON; dataclasses become objects.

    Raises:
        TypeError, ValueError: JSON cannot represent it.
    """
    return json.loads(json.dumps(value, default=_fields))


def typed(value: object, kind: type[Typed], where: str, fix: str, at: str = "", finite: bool = True) -> Typed:
    """Return plain values of JSON as a dataclass, a typed dictionary or another type, fields and types checked.

    Numbers are finite and in the ranges that fields of dataclasses declare. Nothing is converted except lists to
    tuples, keys of objects to numbers, and whole numbers to floats.

    Args:
        value: as `read_json` returns it.
        kind: the type.
        where: the file, for messages; "": the paths of fields are enough.
        fix: as in `read_bytes`.
        at: path of the value in the file, for messages.
        finite: as in `parse_json`.

    Raises:
        UserError: the value has another type; the message names the field.
    """
    start = f"{where}: " if where else ""
    try:
        # As JSON, in which strict tuples are lists and strict numbers may be keys. In a list, because pydantic takes no
        # settings for a dataclass from outside, but for a container of dataclasses it does.
        (result,) = _adapter(cast(Any, kind)).validate_json(json.dumps([value]))
    except pydantic.ValidationError as error:
        raise UserError(f"{start}{_first_problem(error, value, at)}; {fix}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{start}{at or 'the file'} is not plain JSON ({cut(str(error), 80)}); {fix}") from None
    _check_declared(result, start, fix, at)
    try:
        json.dumps(value, allow_nan=not finite)
    except ValueError:
        path = next(_infinite(value, at))
        raise UserError(f"{start}{path or 'the file'} is not finite, expected a finite number; {fix}") from None
    return cast(Typed, result)


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[tuple[Any]]:
    return pydantic.TypeAdapter(tuple[kind], config=_STRICT)


def _first_problem(error: pydantic.ValidationError, value: object, at: str) -> str:
    """Return the first problem that pydantic found: the path of the field, its value, and what was expected."""
    first = error.errors(include_url=False, include_context=False)[0]
    keys, found = at, value
    for key in first["loc"][1:]:  # the first is the position in `typed`'s own list; others may be branches of a union
        if isinstance(found, dict) and key in found:
            keys, found = f"{keys}.{key}", found[key]
        elif isinstance(found, list | tuple) and isinstance(key, int) and key < len(found):
            keys, found = f"{keys}[{key}]", found[key]
        elif first["type"] == "missing":
            keys += f"[{key}]" if isinstance(key, int) else f".{key}"
    path = cut(keys.removeprefix("."), 120)
    if first["type"] == "missing":
        return f"{path} is missing"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path} is not a known field"
    expected = first["msg"].removeprefix("Input should be ")
    return f"{path or 'the file'} is {shown(found)}, expected {_EXPECTED.get(expected, expected)}"


def shown(value: object) -> str:
    """Return at most 63 characters of a value from a file, for messages."""
    if isinstance(value, list | dict | tuple):  # of any size and depth
        return cut(reprlib.repr(value), 63)
    try:
        return cut(json.dumps(value), 63)
    except (TypeError, ValueError):
        return cut(ascii(value), 63)


def _check_declared(value: object, start: str, fix: str, at: str) -> None:
    """Check the ranges and regular expressions that the fields of dataclasses declare, also inside containers."""
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if not isinstance(item, int | float | str):
                _check_declared(item, start, fix, f"{at}[{index}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_declared(item, start, fix, f"{at}.{key}".removeprefix("."))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name, marks in declared(type(value)).items():
            path, item = f"{at}.{name}".removeprefix("."), getattr(value, name)
            _check_declared(item, start, fix, path)
            for mark in marks:
                if problem := _problem(item, mark):
                    raise UserError(f"{start}{path} is {shown(plain(item))}, expected {problem}; {fix}")


@functools.cache
def declared(kind: type) -> dict[str, tuple[object, ...]]:
    """Return the fields of a dataclass with what they declare besides their type, such as a `config.Range`."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: getattr(hints[field.name], "__metadata__", ()) for field in dataclasses.fields(kind)}


def _problem(value: object, mark: object) -> str:
    """Return what was expected of a field whose numbers or texts do not fit a declaration; "" if all fit."""
    leaves = list(_leaves(value))
    if isinstance(mark, Range):
        numbers = [leaf for leaf in leaves if isinstance(leaf, int | float) and not isinstance(leaf, bool)]
        if not all(mark.low <= each <= mark.high for each in numbers):
            return f"numbers from {mark}" if isinstance(value, tuple | dict) else f"a number from {mark}"
    if isinstance(mark, Regexes):
        for text in (leaf for leaf in leaves if isinstance(leaf, str)):
            try:
                re.compile(text)
            except (re.error, OverflowError, RecursionError) as error:
                return f"regular expressions ({cut(str(error), 80)})"
    return ""


def _infinite(value: object, at: str) -> Iterator[str]:
    """Yield the paths of the numbers that are infinite or NaN."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _infinite(item, f"{at}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _infinite(item, f"{at}.{key}".removeprefix("."))
    elif isinstance(value, float) and not math.isfinite(value):
        yield at


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _fields(value: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} is not a value of JSON")


def _check_mode(path: FilePath, mode: int, fix: str) -> None:
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, expected a file; {fix}")


def _text(data: bytes, where: str, fix: str, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not {what} in UTF-8 (byte {error.start}); {fix}") from None
