"""Map between the tensors of a layout and the native parameters, built from the table of names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from sam2_3dmed_jax.errors import UserError
from weights_conversion.names import ROWS, Leaf, Row
from weights_conversion.transforms import SAME, Transform

Layout = Literal["native", "meta", "transformers"]
LAYOUTS: tuple[Layout, ...] = ("native", "meta", "transformers")
Shapes = dict[str, tuple[int, ...]]

_WILDCARD = re.compile(r"#|\([^()]*\)")


@dataclass(frozen=True)
class Link:
    """One native parameter and the tensors of the layout that store it."""

    native: str
    foreign: tuple[str, ...]  # several are equal copies
    transform: Transform
    row: int | None = None  # row of a tensor that stacks several parameters


@dataclass(frozen=True)
class LayoutMap:
    """All links between one model and one layout."""

    layout: Layout
    links: tuple[Link, ...]

    @cached_property
    def by_native(self) -> dict[str, Link]:
        """The link of each native parameter."""
        return {link.native: link for link in self.links}

    @cached_property
    def by_foreign(self) -> dict[str, list[Link]]:
        """The links of each tensor of the layout, sorted by row."""
        links_by_name: dict[str, list[Link]] = {}
        for link in self.links:
            for name in link.foreign:
                links_by_name.setdefault(name, []).append(link)
        for links in links_by_name.values():
            links.sort(key=lambda link: link.row or 0)
        return links_by_name

    def foreign_shapes(self, native: Mapping[str, tuple[int, ...]]) -> Shapes:
        """Return the shapes of the tensors of the layout, given the shapes of the native parameters."""
        shapes = {}
        for name, links in self.by_foreign.items():
            first, *rest = links[0].transform.foreign_shape(native[links[0].native])
            shapes[name] = (first * len(links), *rest)
        return shapes

    def without_absent_copies(self, stored: Collection[str]) -> LayoutMap:
        """Return the map without those copies of a tensor that a file does not store, if it stores another copy.

        Args:
            stored: names of the tensors in the file.
        """
        links = tuple(
            replace(link, foreign=present)
            if 0 < len(present := tuple(name for name in link.foreign if name in stored)) < len(link.foreign)
            else link
            for link in self.links
        )
        return replace(self, links=links)

    def to_native(self, name: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Return a native parameter.

        Args:
            name: its native name.
            read: returns a tensor of the layout from its name.

        Raises:
            UserError: tensors that must be copies of each other differ.
        """
        link = self.by_native[name]
        first, *copies = link.foreign
        value = read(first)
        for copy in copies:
            if not np.array_equal(value, read(copy)):
                raise UserError(f"{first} and {copy} must be equal, but differ; the file is damaged or was edited")
        if link.row is not None:
            value = value[link.row : link.row + 1]
        return link.transform.to_native(value)

    def to_foreign(self, name: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Return a tensor of the layout.

        Args:
            name: its name in the layout.
            read: returns a native parameter from its name.
        """
        parts = [link.transform.to_foreign(read(link.native)) for link in self.by_foreign[name]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def layout_map(layout: Layout, names: Iterable[str], rows: Iterable[Row] = ROWS) -> LayoutMap:
    """Return the map of native parameter names into a layout.

    Raises:
        ValueError: no row or several rows of the table match a name; the message lists all such names.
    """
    if layout == "native":
        return LayoutMap(layout, tuple(Link(name, (name,), SAME) for name in names))
    compiled = [(_regex(row.native + leaf.native), row, leaf) for row in rows for leaf in row.leaves]
    links, wrong = [], []
    for name in names:
        matches = [(match, row, leaf) for regex, row, leaf in compiled if (match := regex.fullmatch(name))]
        if len(matches) == 1:
            links.append(_link(layout, name, *matches[0]))
        else:
            wrong.append(f"{name} ({len(matches)} rows)")
    mapping = LayoutMap(layout, tuple(links))
    for foreign, sharing in mapping.by_foreign.items():
        if [link.row for link in sharing] not in ([None], list(range(len(sharing)))):
            wrong.append(f"{foreign} (from {', '.join(link.native for link in sharing)})")
    if wrong:
        raise ValueError(f"the name table does not map one to one: {'; '.join(wrong)}")
    return mapping


def _regex(pattern: str) -> re.Pattern[str]:
    parts = []
    for text, wildcard in zip(_WILDCARD.split(pattern), [*_WILDCARD.findall(pattern), ""], strict=True):
        parts.append(re.escape(text) + (r"(\d+)" if wildcard == "#" else wildcard))
    return re.compile("".join(parts))


def _link(layout: Layout, name: str, match: re.Match[str], row: Row, leaf: Leaf) -> Link:
    patterns = row.transformers if layout == "transformers" else row.meta or row.native
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if patterns[0].endswith("[#]"):
        words = match.groups()
        stem = _fill(patterns[0].removesuffix("[#]"), words[:-1])
        return Link(name, (stem + leaf.foreign,), leaf.transform, int(words[-1]))
    return Link(name, tuple(_fill(p, match.groups()) + leaf.foreign for p in patterns), leaf.transform)


def _fill(pattern: str, words: tuple[str, ...]) -> str:
    parts = iter(words)
    return _WILDCARD.sub(lambda _: next(parts), pattern)
