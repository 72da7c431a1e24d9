"""Report of a programme as Markdown and as one HTML page in the frame of the package's reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sam2_3dmed_jax.evaluation.report import frame, markup
from sam2_3dmed_jax.evaluation.report.markup import Cell, Range

ONLY = "For research use only. Not for diagnosis or treatment."


@dataclass(frozen=True)
class Table:
    """A table of the report."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    heads: int = 1  # number of first cells that are headers of a row


@dataclass(frozen=True)
class Figure:
    """A picture with its heading and caption."""

    file: str  # path relative to the page: .svg or .png
    data: bytes
    heading: str
    caption: str


Sections = Sequence[tuple[str, Sequence[Table]]]


def page(title: str, notes: Sequence[str], sections: Sections, figures: Sequence[Figure]) -> str:
    """Return the report as one HTML file."""
    notes_list = "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""
    parts = [("What these results show, and what they do not", notes_list)]
    parts += [
        (name, "".join(markup.table(t.caption, t.header, t.rows, t.heads) for t in tables)) for name, tables in sections
    ]
    drawn = "".join(
        markup.figure("png" if f.file.endswith(".png") else "svg+xml", f.data, f"{f.heading}. {f.caption}", f.caption)
        for f in figures
    )
    parts.append(("Figures", f'<div class="plots">{drawn}</div>' if drawn else ""))
    return frame.html_page(title, parts)


def markdown(title: str, notes: Sequence[str], sections: Sections, figures: Sequence[Figure]) -> str:
    """Return the report as Markdown, with numbers rounded as shown."""
    lines = [f"# {title}", "", ONLY, "", *(f"- {note}" for note in notes), ""]
    for name, tables in sections:
        lines += [f"## {name}", ""]
        for table in tables:
            lines += [table.caption, "", _row(table.header), _row(["---"] * len(table.header))]
            lines += [*(_row(row) for row in table.rows), ""]
    if figures:
        lines += ["## Figures", ""]
        for figure in figures:
            lines += [f"![{figure.heading}]({figure.file})", "", figure.caption, ""]
    return "\n".join(lines)


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(cell: Cell) -> str:
    if isinstance(cell, Range):
        return f"{cell.low} to {cell.high}"
    return "" if cell is None else str(cell).replace("|", "\\|")
