"""Pictures of failures: the worst cases of the two methods of the primary comparison, from their runs' reports."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

from experiments.paper.page import Figure
from experiments.paper.programme import PRIMARY, Programme, cells
from experiments.paper.variants import ONE_CLICK
from sam2_3dmed_jax.evaluation.result_files import REPORT

SHOWN = 2  # pictures per task and method
_PNG = "data:image/png;base64,"


def pictures(programme: Programme, out: Path) -> list[Figure]:
    """Return the worst cases of the first run of each method and task."""
    figures = []
    for task in programme.tasks:
        for name in PRIMARY:
            own = [cell for cell in cells(programme) if (cell.task, cell.variant.name) == (task, name)]
            pages = [page for cell in own if (page := cell.scores(out, ONE_CLICK) / REPORT).exists()]
            for at, (data, description) in enumerate(_worst(pages[0]) if pages else ()):
                label = next(variant.label for variant in programme.rows if variant.name == name)
                caption = (
                    f"{task.title}, {label}, one of the worst cases of {pages[0].parents[2].name}: {description} "
                    "Amber, solid: prediction; blue, dashed: reference; axial, coronal and sagittal plane on which "
                    "they differ most."
                )
                file = f"figures/failure_{task.name}_{name}_{at + 1}.png"
                figures.append(Figure(file, data, f"Failure on {task.title}", caption))
    return figures


def _worst(page: Path) -> list[tuple[bytes, str]]:
    """Return the first pictures of a run's page, whose worst cases come first, with their descriptions."""
    reader = _Pictures()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader.found[:SHOWN]


class _Pictures(HTMLParser):
    """Reader of the PNG pictures of a page: they show the worst cases; all other pictures are SVG."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[bytes, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        source = own.get("src") or ""
        if tag == "img" and source.startswith(_PNG):
            description = (own.get("alt") or "").partition(". ")[2]
            self.found.append((base64.b64decode(source[len(_PNG) :]), description))
