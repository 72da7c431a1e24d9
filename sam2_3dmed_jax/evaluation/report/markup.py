"""HTML of tables and figures. Whatever is written here is escaped: names of cases and classes are the user's.

A number stands rounded for the eye, and whole in `<data value>`, as the CSV or JSON beside the page has it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

NONE = "–"  # no value
_RIGHT = ' class="n"'


@dataclass(frozen=True)
class Number:
    """A cell that holds a number."""

    value: float | None  # None and NaN: there is none
    digits: int = 4  # after the point
    exact: str | None = None  # as the file beside the page has it; None: `repr`
    sign: bool = False  # a plus is written
    least: float | None = None  # smaller ones are shown as below this: p values

    def __str__(self) -> str:
        """The rounded number, or a dash."""
        if self.value is None or math.isnan(self.value):
            return NONE
        if self.least is not None and self.value < self.least:
            return f"< {self.least:.{self.digits}f}"
        return f"{self.value:{'+' if self.sign else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Range:
    """A cell that holds an interval."""

    low: Number
    high: Number


Cell = Number | Range | str | int | None


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], heads: int = 1) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        caption: text, with all definitions that its numbers need.
        header: of the columns.
        rows: their cells.
        heads: how many first cells of a row name it.
    """
    right = {at for cells in rows for at, cell in enumerate(cells) if isinstance(cell, Number | Range | int)}
    columns = "".join(
        f'<th scope="col"{_RIGHT if at in right else ""}>{escape(name)}</th>' for at, name in enumerate(header)
    )
    body = "\n".join(
        "<tr>" + "".join(_cell(cell, at < heads) for at, cell in enumerate(cells)) + "</tr>" for cells in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption.split(".")[0])}">'
        f"<table><caption>{escape(caption)}</caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>"
        "</table></div>"
    )


def facts(caption: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A table of names and what they are."""
    return table(caption, ("what", "value"), pairs)


def figure(kind: Literal["svg+xml", "png"], data: bytes, alt: str, caption: str) -> str:
    """A picture inside of the page, with its text for those who do not see it; as an image, its scripts never run."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return f'<figure><img src="{source}" alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _cell(cell: Cell, head: bool) -> str:
    if isinstance(cell, Number):
        return f"<td{_RIGHT}>{_data(cell)}</td>"
    if isinstance(cell, Range):
        return f"<td{_RIGHT}>{_data(cell.low)} to {_data(cell.high)}</td>"
    text = escape("" if cell is None else str(cell))
    if head:
        return f'<th scope="row">{text}</th>'
    return f"<td{_RIGHT}>{text}</td>" if isinstance(cell, int) else f"<td>{text}</td>"


def _data(number: Number) -> str:
    exact = number.exact if number.exact is not None else "" if number.value is None else repr(float(number.value))
    return f'<data value="{escape(exact)}">{escape(str(number))}</data>'
