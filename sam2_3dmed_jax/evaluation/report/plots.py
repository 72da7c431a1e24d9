"""Plots of a report as SVG: box plots, Dice against size, Bland-Altman, reliability and robustness curves.

Text is drawn literally, never as mathematics, because names are the user's. Figures are made without pyplot, so that
they share no state, and equal numbers give equal bytes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sam2_3dmed_jax.evaluation.report.wording import limits_of, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, distinguishable by the colour-blind; markers repeat with another period.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.hashsalt": "report",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_LEGEND = 14  # classes named in a legend, at most
_NAME = 36  # characters of a name in a plot, at most
_WIDTH = 3.9  # inches of the axes


@dataclass(frozen=True, eq=False)
class Box:
    """One box of a box plot: the cases of a class, segmented by one method."""

    name: str  # of the class
    method: str  # "" if all boxes are of one method
    values: np.ndarray  # [C], NaN where a case has no value
    summary: Mapping[str, Any]  # quartiles, mean and interval, as in `summary.json`


def boxes(metric: str, drawn: Sequence[Box]) -> bytes:
    """Draw boxes: quartiles, whiskers to the last case within 1.5 of their distance, cases, mean, interval.

    Args:
        metric: of the axis.
        drawn: in the order from top to bottom, the boxes of one class next to each other. Boxes of several methods have
            the colour of the method, and others the colour of the class.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        names, methods = ([*dict.fromkeys(getattr(box, key) for box in drawn)] for key in ("name", "method"))
        left = max(map(_inches, names)) + 0.2
        legend = 0.3 if len(methods) > 1 else 0.0
        gap = 0.4 if len(methods) > 1 else 0.0  # between classes, in boxes
        rows = [-number - gap * names.index(box.name) for number, box in enumerate(drawn)]
        height = 0.42 * (1 - rows[-1]) + legend + 0.8
        figure, axis = _figure(left + _WIDTH + 0.1, height, left=left, top=0.1 + legend)
        for box, row in zip(drawn, rows, strict=True):
            number = methods.index(box.method) if len(methods) > 1 else names.index(box.name)
            _draw_box(axis, row, box, COLOURS[number % len(COLOURS)])
        places = {name: [row for box, row in zip(drawn, rows, strict=True) if box.name == name] for name in names}
        axis.set(yticks=[sum(own) / len(own) for own in places.values()], ylim=(rows[-1] - 0.6, 0.6))
        axis.set_yticklabels([_short(name) for name in names])
        axis.set_xlabel(name_of(metric))
        if limits := limits_of(metric):
            axis.set_xlim(limits[0] - 0.03, limits[1] + 0.03)
        elif is_logarithmic(metric, drawn):
            axis.set_xscale("symlog", linthresh=10)
            pooled = _pooled(drawn)
            # The axis includes 0, so that it has ticks: similar values may have no power of ten between them.
            axis.set_xlim(min(0.0, 1.2 * float(pooled.min())), max(0.0, 1.2 * float(pooled.max())))
            _plain(axis.xaxis)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        if legend:
            for number, method in enumerate(methods):
                axis.barh(0, 0, color=COLOURS[number % len(COLOURS)], alpha=0.6, label=_short(method))
            axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
        return _svg(figure)


def _draw_box(axis: Axes, row: float, box: Box, colour: str) -> None:
    scored, entry = box.values[~np.isnan(box.values)], box.summary
    if not scored.size:
        return
    spread = np.sin(np.arange(scored.size) * 2.4) * 0.16  # apart from each other, and always in the same place
    axis.plot(scored, row + spread, "o", color="0.45", markersize=2.5, alpha=0.7, markeredgewidth=0)
    if entry["median"] is None:
        return
    q1, q3 = entry["q1"], entry["q3"]
    inside = scored[(scored >= q1 - 1.5 * (q3 - q1)) & (scored <= q3 + 1.5 * (q3 - q1))]
    if inside.size:
        axis.hlines(row, inside.min(), inside.max(), color=colour, linewidth=1, zorder=1)
    axis.barh(row, q3 - q1, 0.5, q1, color=colour, alpha=0.3, edgecolor=colour)
    axis.vlines(entry["median"], row - 0.25, row + 0.25, color=colour, linewidth=2)
    axis.plot(entry["mean"], row, "D", color="black", markersize=4)
    if entry["ci95"]:
        axis.hlines(row - 0.33, *entry["ci95"], color="black", linewidth=1.5)


def is_logarithmic(metric: str, drawn: Sequence[Box]) -> bool:
    """Return whether `boxes` uses a logarithmic axis: a miss has the image's diagonal, and others must stay legible."""
    return limits_of(metric) is None and bool((np.abs(_pooled(drawn)) > 100).any())


def _pooled(drawn: Sequence[Box]) -> np.ndarray:
    values = np.concatenate([box.values for box in drawn])
    return values[~np.isnan(values)]


def dice_against_size(volume_ml: Mapping[str, np.ndarray], dice: Mapping[str, np.ndarray]) -> bytes:
    """Draw the Dice of each case against the reference's volume in mL, both `[C]` by class, where both exist."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        named = len(volume_ml) <= _LEGEND
        figure, axis = _figure_with_legend(volume_ml if named else (), 3.6)
        for number, name in enumerate(volume_ml):
            size, score = volume_ml[name], dice[name]
            drawn = (size > 0) & ~np.isnan(score)
            axis.plot(size[drawn], score[drawn], linestyle="", markersize=5, label=_short(name), **_look(number))
        axis.set(ylim=(-0.03, 1.03), xlabel="reference volume (mL)", ylabel="Dice")
        sizes = np.concatenate(list(volume_ml.values()))
        _logarithmic(axis, sizes[sizes > 0])
        axis.grid(color="0.9")
        if named:
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def bland_altman(
    prediction_ml: np.ndarray, reference_ml: np.ndarray, lines: Sequence[float | None], title: str
) -> bytes:
    """Draw the difference of two volumes against their mean, `[C]` mL, with `lines`: bias, lower and upper limit."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axis = _figure(4.3, 3.2, top=0.35)
        axis.axhline(0, color="0.8", linewidth=1)
        axis.plot(
            (prediction_ml + reference_ml) / 2, prediction_ml - reference_ml, markersize=4, linestyle="", **_look(0)
        )
        for value, style in zip(lines, ("-", "--", "--"), strict=True):
            if value is not None:
                axis.axhline(value, color=COLOURS[1], linestyle=style, linewidth=1.2)
        axis.set(xlabel="mean of both volumes (mL)", ylabel="prediction minus reference (mL)")
        axis.set_title(_short(title), fontsize=9)
        axis.locator_params(axis="x", nbins=5)
        _fit_left(figure, axis)
        return _svg(figure)


def reliability(bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Draw the share of voxels inside the reference against their mean probability, one line per class.

    Args:
        bins: `pooled_bins` of each class; a class without bins has no line. The area of a mark grows with the share of
            voxels in its bin.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axis = _figure_with_legend(bins, 3.8, 3.5)
        axis.plot((0, 1), (0, 1), "--", color="0.6", linewidth=1)
        for number, (name, class_bins) in enumerate(bins.items()):
            if not class_bins:
                continue
            filled = [one for one in class_bins if one["voxels"]]
            total = sum(one["voxels"] for one in filled)
            x, y = ([one[key] for one in filled] for key in ("probability", "inside"))
            look = _look(number)
            axis.plot(x, y, linewidth=1, color=look["color"], alpha=look["alpha"])
            axis.plot([], [], linestyle="", label=_short(name), **look)
            axis.scatter(x, y, [12 + 200 * one["voxels"] / total for one in filled], linewidths=0, **look)
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="mean probability", ylabel="share inside the reference")
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def curves(points: Sequence[Mapping[str, Any]], x: str, y: str) -> bytes:
    """Draw how a mean changes with one condition: one line per series, with its interval as a band.

    Args:
        points: {"x": number, "series": name, "mean": number or None, "ci95": (low, high) or None}; a point without a
            mean interrupts its line.
        x: name of the horizontal axis, with its unit.
        y: name of the vertical axis.
    """
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(_STYLE):
        names = list(dict.fromkeys(str(point["series"]) for point in points))
        figure, axis = _figure_with_legend(names, 3.6)
        for number, series in enumerate(names):
            line = sorted((p for p in points if str(p["series"]) == series), key=lambda p: float(p["x"]))
            places = [float(point["x"]) for point in line]
            means = [math.nan if point["mean"] is None else float(point["mean"]) for point in line]
            ends = np.array([point["ci95"] or (math.nan, math.nan) for point in line], float)
            axis.plot(places, means, label=_short(series), markersize=5, **_look(number))
            axis.fill_between(places, ends[:, 0], ends[:, 1], color=_look(number)["color"], alpha=0.15, linewidth=0)
        axis.set(xlabel=x, ylabel=y)
        if all(float(point["x"]).is_integer() for point in points):
            axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))  # no half slices
        axis.grid(color="0.9")
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "alpha": 0.75}


def _short(name: str) -> str:
    """Return a name short enough for a plot, with question marks for characters that cannot be drawn.

    The middle is left out, because names of many classes often start alike.
    """
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    half = (_NAME - 1) // 2
    return shown if len(shown) <= _NAME else f"{shown[: _NAME - 1 - half]}…{shown[-half:]}"


@functools.lru_cache(maxsize=1024)
def _inches(name: str) -> float:
    """Return the width of a name in the plot."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with _characters_without_glyph():
        points, *_ = text_to_path.get_text_width_height_descent(
            _short(name), FontProperties(size=_STYLE["font.size"]), ismath=False
        )
    return float(points) / 72


def _figure(
    width: float, height: float, left: float = 0.6, right: float = 0.1, top: float = 0.1
) -> tuple[Figure, Axes]:
    """Return a figure and its axes, with sizes and margins in inches, which is much faster than an automatic layout."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, 0.5 / height, 1 - right / width, 1 - top / height)
    return figure, figure.subplots()


def _figure_with_legend(names: Collection[str], height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    """Return a figure and its axes, with room for a legend of these names on the right."""
    right = max(map(_inches, names)) + 0.4 if names else 0.1
    return _figure(0.6 + width + right, height, right=right)


def _fit_left(figure: Figure, axis: Axes) -> None:
    """Make the left margin wide enough for the numbers and the label of the vertical axis."""
    numbers = axis.yaxis.get_major_formatter().format_ticks(list(axis.get_yticks()))
    margin = max(map(_inches, numbers)) + 0.4
    figure.subplots_adjust(left=margin / figure.get_figwidth())


def _logarithmic(axis: Axes, values: np.ndarray) -> None:
    """Make the horizontal axis logarithmic, with at least two numbers: around the values, of 1, 2, 5, 10, 20, ..."""
    from matplotlib.ticker import FixedLocator

    axis.set_xscale("log")
    low, high = (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    grid = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    first = max(number for number, tick in enumerate(grid) if tick < low)
    last = min(number for number, tick in enumerate(grid) if tick > high)
    axis.set_xlim(grid[first], grid[last])
    wide = last - first > 7  # then the powers of ten are enough
    ticks = [grid[number] for number in range(first, last + 1) if not wide or number % 3 == 0]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    _plain(axis.xaxis)


def _plain(axis: Axis) -> None:
    """Write numbers on a logarithmic axis without powers of ten, which matplotlib sets as mathematics."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    with _characters_without_glyph():
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


@contextlib.contextmanager
def _characters_without_glyph() -> Iterator[None]:
    """Let characters that the font lacks be drawn as boxes; the caption and the alternative text have the name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield
