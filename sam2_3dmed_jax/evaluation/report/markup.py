"""HTML of tables and figures. All text is escaped, because names of cases and classes are the user's.

A number is shown rounded, and `<data value>` has all its digits, as in the CSV or JSON file next to the page.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

NO_VALUE = "–"
_RIGHT = ' class="n"'


@dataclass(frozen=True)
class Number:
    """A cell with a number."""

    value: float | None  # None and NaN: no value
    digits: int = 4  # after the point
    exact: str | None = None  # the text in the file next to the page; None: `repr`
    sign: bool = False  # show a plus sign
    least: float | None = None  # smaller values are shown as below this: p values

    def __str__(self) -> str:
        """Return the rounded number, or a dash."""
        if self.value is None or math.isnan(self.value):
            return NO_VALUE
        if self.least is not None and self.value < self.least:
            return f"< {self.least:.{self.digits}f}"
        return f"{self.value:{'+' if self.sign else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Range:
    """A cell with an interval."""

    low: Number
    high: Number


@dataclass(frozen=True)
class Lines:
    """A cell with several lines: a number, and what belongs to it in small letters."""

    number: Number | str
    below: tuple[Range | str, ...]


Cell = Number | Range | Lines | str | int | None


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], heads: int = 1) -> str:
    """Return a table, which scrolls if it is wider than the page.

    Args:
        caption: text, with the definitions of all numbers.
        header: of the columns.
        rows: cells of each row.
        heads: number of cells at the start of a row that are headings.
    """
    right = {at for cells in rows for at, cell in enumerate(cells) if isinstance(cell, Number | Range | Lines | int)}
    columns = "".join(
        f'<th scope="col"{_RIGHT if at in right else ""}>{escape(name)}</th>' for at, name in enumerate(header)
    )
    body = "\n".join(
        "<tr>" + "".join(_cell(cell, at < heads) for at, cell in enumerate(cells)) + "</tr>" for cells in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption.split(".")[0])}">'
        f"<table><caption><div>{escape(caption)}</div></caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>"
        "</table></div>"
    )


def facts(caption: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    return table(caption, ("what", "value"), pairs)


def figure(kind: Literal["svg+xml", "png"], data: bytes, alt: str, caption: str) -> str:
    """Return a picture stored in the page, with an alternative text; scripts in an image never run."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return f'<figure><img src="{source}" alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _cell(cell: Cell, head: bool) -> str:
    if isinstance(cell, Number | Range | Lines):
        return f"<td{_RIGHT}>{_numbers(cell)}</td>"
    text = escape("" if cell is None else str(cell))
    if head:
        return f'<th scope="row">{text}</th>'
    return f"<td{_RIGHT}>{text}</td>" if isinstance(cell, int) else f"<td>{text}</td>"


def _numbers(cell: Number | Range | Lines | str) -> str:
    if isinstance(cell, Number):
        return _data(cell)
    if isinstance(cell, Range):
        return f"{_data(cell.low)} to {_data(cell.high)}"
    if isinstance(cell, Lines):
        return _numbers(cell.number) + "".join(f"<div>{_numbers(line)}</div>" for line in cell.below)
    return escape(cell)


def _data(number: Number) -> str:
    exact = number.exact if number.exact is not None else "" if number.value is None else repr(float(number.value))
    return f'<data value="{escape(exact)}">{escape(str(number))}</data>'
