"""Failures as pictures: the worst cases of the primary comparison's two methods, from the pages of their runs."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

from experiments.paper.page import Figure
from experiments.paper.programme import PRIMARY, Programme, cells
from experiments.paper.variants import ONE_CLICK
from sam2_3dmed_jax.evaluation.results import REPORT

SHOWN = 2  # of a task and method
_PNG = "data:image/png;base64,"


def pictures(programme: Programme, out: Path) -> list[Figure]:
    """The worst cases of the first run of each."""
    found = []
    for task in programme.tasks:
        for name in PRIMARY:
            own = [cell for cell in cells(programme) if (cell.task, cell.variant.name) == (task, name)]
            pages = [page for cell in own if (page := cell.scores(out, ONE_CLICK) / REPORT).exists()]
            for at, (data, told) in enumerate(_worst(pages[0]) if pages else ()):
                label = next(variant.label for variant in programme.rows if variant.name == name)
                caption = (
                    f"{task.title}, {label}, among its worst of {pages[0].parents[2].name}: {told} Amber, solid: "
                    "prediction; blue, dashed: reference; axial, coronal and sagittal plane on which they differ most."
                )
                file = f"figures/failure_{task.name}_{name}_{at + 1}.png"
                found.append(Figure(file, data, f"Failure on {task.title}", caption))
    return found


def _worst(page: Path) -> list[tuple[bytes, str]]:
    """The first pictures of a run's page, which has the worst ones first, with their words."""
    reader = _Pictures()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader.found[:SHOWN]


class _Pictures(HTMLParser):
    """Reads the PNG of a page: those are of its worst cases, and all else is SVG."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[bytes, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        source = own.get("src") or ""
        if tag == "img" and source.startswith(_PNG):
            told = (own.get("alt") or "").partition(". ")[2]
            self.found.append((base64.b64decode(source[len(_PNG) :]), told))
