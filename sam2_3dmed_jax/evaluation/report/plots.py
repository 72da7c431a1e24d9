"""Plots of a report as SVG: box plots, Dice against size, Bland-Altman, reliability and robustness curves.

Text is drawn literally, never as mathematics, because names are the user's. Figures are made without pyplot, so that
they share no state, and equal numbers give equal bytes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
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


def boxes(metric: str, values: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> bytes:
    """Draw one box per class: quartiles, whiskers to the last case within 1.5 of their distance, cases, mean, interval.

    Args:
        metric: of the axis.
        values: `[C]` of each class, NaN where a case has no value.
        summary: the entry of each class in `summary.json`, with quartiles, mean and interval.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axis = _figure(6.4, 0.9 + 0.42 * len(values), left=max(map(_inches, values)) + 0.2)
        names = list(values)[::-1]
        for row, name in enumerate(names):
            scored, entry = values[name][~np.isnan(values[name])], summary[name][metric]
            if not scored.size:
                continue
            spread = np.sin(np.arange(scored.size) * 2.4) * 0.16  # apart from each other, and always in the same place
            axis.plot(scored, row + spread, "o", color="0.45", markersize=2.5, alpha=0.7, markeredgewidth=0)
            if entry["median"] is None:
                continue
            q1, q3 = entry["q1"], entry["q3"]
            inside = scored[(scored >= q1 - 1.5 * (q3 - q1)) & (scored <= q3 + 1.5 * (q3 - q1))]
            colour = COLOURS[(len(names) - 1 - row) % len(COLOURS)]
            if inside.size:
                axis.hlines(row, inside.min(), inside.max(), color=colour, linewidth=1, zorder=1)
            axis.barh(row, q3 - q1, 0.5, q1, color=colour, alpha=0.3, edgecolor=colour)
            axis.vlines(entry["median"], row - 0.25, row + 0.25, color=colour, linewidth=2)
            axis.plot(entry["mean"], row, "D", color="black", markersize=4)
            if entry["ci95"]:
                axis.hlines(row - 0.33, *entry["ci95"], color="black", linewidth=1.5)
        axis.set(yticks=range(len(names)), ylim=(-0.6, len(names) - 0.4), xlabel=name_of(metric))
        axis.set_yticklabels([_short(name) for name in names])
        if limits := limits_of(metric):
            axis.set_xlim(limits[0] - 0.03, limits[1] + 0.03)
        elif is_logarithmic(metric, values):
            axis.set_xscale("symlog", linthresh=10)
            pooled = np.concatenate(list(values.values()))
            # The axis includes 0, so that it has ticks: similar values may have no power of ten between them.
            axis.set_xlim(min(0.0, 1.2 * float(np.nanmin(pooled))), max(0.0, 1.2 * float(np.nanmax(pooled))))
            _plain(axis.xaxis)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        return _svg(figure)


def is_logarithmic(metric: str, values: Mapping[str, np.ndarray]) -> bool:
    """Return whether `boxes` uses a logarithmic axis: a miss has the image's diagonal, and others must stay legible."""
    pooled = np.concatenate(list(values.values()))
    return limits_of(metric) is None and bool((np.abs(pooled[~np.isnan(pooled)]) > 100).any())


def dice_against_size(volume_ml: Mapping[str, np.ndarray], dice: Mapping[str, np.ndarray]) -> bytes:
    """Draw the Dice of each case against the reference's volume in mL, both `[C]` by class, where both exist."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        named = len(volume_ml) <= _LEGEND
        figure, axis = _figure(6.4, 3.6, right=max(map(_inches, volume_ml)) + 0.4 if named else 0.1)
        for number, name in enumerate(volume_ml):
            size, score = volume_ml[name], dice[name]
            drawn = (size > 0) & ~np.isnan(score)
            axis.plot(size[drawn], score[drawn], linestyle="", markersize=5, label=_short(name), **_look(number))
        axis.set(xscale="log", ylim=(-0.03, 1.03), xlabel="reference volume (mL)", ylabel="Dice")
        _plain(axis.xaxis)
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
        figure, axis = _figure(4.2, 3.2, left=0.85, top=0.35)
        axis.axhline(0, color="0.8", linewidth=1)
        axis.plot(
            (prediction_ml + reference_ml) / 2, prediction_ml - reference_ml, markersize=4, linestyle="", **_look(0)
        )
        for value, style in zip(lines, ("-", "--", "--"), strict=True):
            if value is not None:
                axis.axhline(value, color=COLOURS[1], linestyle=style, linewidth=1.2)
        axis.set(xlabel="mean of both volumes (mL)", ylabel="prediction minus reference (mL)")
        axis.set_title(_short(title), fontsize=9)
        return _svg(figure)


def reliability(bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Draw the share of voxels inside the reference against their mean probability, one line per class.

    Args:
        bins: `pooled_bins` of each class; a class without bins has no line. The area of a mark grows with the share of
            voxels in its bin.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        names = max(map(_inches, bins)) + 0.4
        figure, axis = _figure(4.2 + names, 3.8, right=names)
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

    with matplotlib.rc_context(_STYLE):
        names = list(dict.fromkeys(str(point["series"]) for point in points))
        figure, axis = _figure(6.4, 3.6, right=max(map(_inches, names)) + 0.4)
        for number, series in enumerate(names):
            line = sorted((p for p in points if str(p["series"]) == series), key=lambda p: float(p["x"]))
            places = [float(point["x"]) for point in line]
            means = [math.nan if point["mean"] is None else float(point["mean"]) for point in line]
            ends = np.array([point["ci95"] or (math.nan, math.nan) for point in line], float)
            axis.plot(places, means, label=_short(series), markersize=5, **_look(number))
            axis.fill_between(places, ends[:, 0], ends[:, 1], color=_look(number)["color"], alpha=0.15, linewidth=0)
        axis.set(xlabel=x, ylabel=y)
        axis.grid(color="0.9")
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "alpha": 0.75}


def _short(name: str) -> str:
    """Return a name short enough for the plot, with question marks for characters that cannot be drawn."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= 28 else f"{shown[:27]}…"


def _inches(name: str) -> float:
    """Return the approximate width of a name in the plot."""
    return 0.085 * len(_short(name))


def _figure(
    width: float, height: float, left: float = 0.6, right: float = 0.1, top: float = 0.1
) -> tuple[Figure, Axes]:
    """Return a figure and its axes, with sizes and margins in inches, which is much faster than an automatic layout."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    sides = {"left": left / width, "right": 1 - right / width, "bottom": 0.5 / height, "top": 1 - top / height}
    return figure, figure.subplots(gridspec_kw=sides)


def _plain(axis: Axis) -> None:
    """Write numbers on a logarithmic axis without powers of ten, which matplotlib sets as mathematics."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes; the caption and the alternative text have the name.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
