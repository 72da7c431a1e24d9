"""Pickles of plain values: lists, tuples, dicts, texts, numbers, and NumPy's arrays and scalars.

The challenge stores `boxes` and `clicks` as object arrays, and NumPy writes these as pickles. A pickle is a program
that can call any function, so these are not given to `pickle`: this reader executes the few opcodes that NumPy writes
for plain values, calls nothing, and refuses everything else. NumPy's arrays and scalars become Python's lists and
numbers.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

_ARRAY, _SCALAR, _DTYPE, _ARRAY_CLASS = "array", "scalar", "dtype", "array class"
_NUMPY_NAMES = {  # the only global names that are known, with their kinds
    "numpy dtype": _DTYPE,
    "numpy ndarray": _ARRAY_CLASS,
    **{
        f"{module} {name}": kind
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
        for name, kind in (("_reconstruct", _ARRAY), ("scalar", _SCALAR))
    },
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ARGUMENTS = (  # opcodes whose argument is the value
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
)
_DTYPES = re.compile(r"[biuf][1248]|O8|U[0-9]{1,2}")


class NotPlainError(ValueError):
    """A pickle has content other than plain values; the message names it."""


class _Global:
    """A name of NumPy."""

    def __init__(self, kind: str):
        self.kind = kind


class _DType:
    """A dtype of NumPy under construction."""

    def __init__(self, code: str):
        self.code = code
        self.order: Literal["<", ">", "|", "="] = "|"

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array(list[Any]):
    """An array under construction, which becomes a nested list."""


_MARK = object()


def read_plain_pickle(data: bytes) -> Any:
    """Return the value of a pickle.

    Args:
        data: the pickle; the caller limits its size.

    Raises:
        NotPlainError: it is damaged, or has other content than plain values.
    """
    try:
        return _run(data)
    except NotPlainError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise NotPlainError("a damaged pickle") from error


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    room = len(data)  # elements of all arrays: each is written in the pickle, but a hostile one can refer to it again
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            (value,) = stack
            return value
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(_popped(stack, _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif name in ("APPEND", "APPENDS"):
            values = _popped(stack, 1) if name == "APPEND" else _to_mark(stack)
            _of_type(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = _popped(stack, 2) if name == "SETITEM" else _to_mark(stack)
            _of_type(stack[-1], dict).update(_pairs(values))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            text = argument if name == "GLOBAL" else " ".join(_popped(stack, 2))
            if text not in _NUMPY_NAMES:
                raise NotPlainError(f"the Python object {text.replace(' ', '.')}")
            stack.append(_Global(_NUMPY_NAMES[text]))
        elif name == "REDUCE":
            function, arguments = _popped(stack, 2)
            stack.append(_new(_of_type(function, _Global).kind, arguments))
        elif name == "BUILD":
            (state,) = _popped(stack, 1)
            room -= _set_state(stack[-1], state, room)
        else:
            raise NotPlainError(f"the pickle instruction {name}")
    raise NotPlainError("a damaged pickle")


def _popped(stack: list[Any], count: int) -> list[Any]:
    """Remove the last values from the stack and return them."""
    values = stack[-count:]
    if len(values) < count or any(value is _MARK for value in values):
        raise NotPlainError("a damaged pickle")
    del stack[-count:]
    return values


def _to_mark(stack: list[Any]) -> list[Any]:
    """Remove the values after the last mark, and the mark, and return the values."""
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _pairs(values: list[Any]) -> Iterator[tuple[str, Any]]:
    for key, value in zip(values[::2], values[1::2], strict=True):
        yield _of_type(key, str), value


def _of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise NotPlainError("a damaged pickle")
    return value


def _new(kind: str, arguments: tuple[Any, ...]) -> Any:
    """Return what a call of one of NumPy's names makes."""
    if kind == _DTYPE:
        code, *_ = arguments
        if not isinstance(code, str) or not _DTYPES.fullmatch(code):
            raise NotPlainError(f"the dtype {str(code)[:20]!r}")
        return _DType(code)
    if kind == _ARRAY:
        return _Array()
    if kind == _SCALAR:
        dtype, data = arguments
        (value,) = np.frombuffer(_of_type(data, bytes), _of_type(dtype, _DType).to_numpy()).tolist()
        return value
    raise NotPlainError("a damaged pickle")


def _set_state(target: Any, state: tuple[Any, ...], room: int) -> int:
    """Complete a dtype, or an array of at most `room` elements, and return the number of its elements."""
    if isinstance(target, _DType):
        _, order, *_ = state
        if order not in ("<", ">", "|", "="):
            raise NotPlainError("a damaged pickle")
        target.order = order
        return 0
    if isinstance(target, _Array):
        _, shape, dtype, is_fortran, content = state
        if len(content) > room:
            raise NotPlainError("a damaged pickle")
        if dtype.code == "O8":
            flat = list(_of_type(content, list))
        else:
            flat = np.frombuffer(_of_type(content, bytes), dtype.to_numpy()).tolist()
        if is_fortran:
            raise NotPlainError("an array in Fortran order")
        if len(shape) > 4 or not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(flat):
            raise NotPlainError("a damaged pickle")
        target[:] = _nested(flat, shape)
        return len(flat)
    raise NotPlainError("a Python object")


def _nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return the elements of an array in C order as nested lists; without axes, a list of the only one."""
    for length in reversed(shape[1:]):
        flat = [flat[start : start + length] for start in range(0, len(flat), length)] if length else []
    return flat
