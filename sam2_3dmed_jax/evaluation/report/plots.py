"""Plots of a report as SVG: boxes, Dice against size, Bland-Altman, and curves of robustness.

Text is drawn as it stands, never as mathematics: names are the user's. Figures are made without pyplot, so that no
state is shared, and are the same bytes for the same numbers.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sam2_3dmed_jax.evaluation.report.wording import is_share, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart; markers repeat with another period.
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
    """A box a class: quartiles, whiskers to the last case within 1.5 of their distance, all cases, mean and interval.

    Args:
        metric: of the axis.
        values: `[C]` of each class, NaN where a case has none.
        summary: `summarise`'s entry of each class, which has quartiles, mean and interval.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axis = _figure(6.4, 0.9 + 0.42 * len(values), left=max(map(_inches, values)) + 0.2)
        names = list(values)[::-1]
        for at, name in enumerate(names):
            scored, entry = values[name][~np.isnan(values[name])], summary[name][metric]
            if not scored.size:
                continue
            spread = np.sin(np.arange(scored.size) * 2.4) * 0.16  # apart, and in the same place each time
            axis.plot(scored, at + spread, "o", color="0.45", markersize=2.5, alpha=0.7, markeredgewidth=0)
            if entry["median"] is None:
                continue
            q1, q3 = entry["q1"], entry["q3"]
            inside = scored[(scored >= q1 - 1.5 * (q3 - q1)) & (scored <= q3 + 1.5 * (q3 - q1))]
            colour = COLOURS[(len(names) - 1 - at) % len(COLOURS)]
            if inside.size:
                axis.hlines(at, inside.min(), inside.max(), color=colour, linewidth=1, zorder=1)
            axis.barh(at, q3 - q1, 0.5, q1, color=colour, alpha=0.3, edgecolor=colour)
            axis.vlines(entry["median"], at - 0.25, at + 0.25, color=colour, linewidth=2)
            axis.plot(entry["mean"], at, "D", color="black", markersize=4)
            if entry["ci95"]:
                axis.hlines(at - 0.33, *entry["ci95"], color="black", linewidth=1.5)
        axis.set(yticks=range(len(names)), ylim=(-0.6, len(names) - 0.4), xlabel=name_of(metric))
        axis.set_yticklabels([_short(name) for name in names])
        if is_share(metric):
            axis.set_xlim(-0.03, 1.03)
        elif is_logarithmic(metric, values):
            axis.set_xscale("symlog", linthresh=10)
            found = np.concatenate(list(values.values()))
            # From 0 on, so that there are ticks: values that are alike may have no power of ten among them.
            axis.set_xlim(min(0.0, 1.2 * float(np.nanmin(found))), max(0.0, 1.2 * float(np.nanmax(found))))
            _plain(axis.xaxis)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        return _svg(figure)


def is_logarithmic(metric: str, values: Mapping[str, np.ndarray]) -> bool:
    """Whether `boxes` bends its axis: a miss costs the image's diagonal, and the others must stay legible."""
    found = np.concatenate(list(values.values()))
    return not is_share(metric) and bool((np.abs(found[~np.isnan(found)]) > 100).any())


def dice_against_size(volume_ml: Mapping[str, np.ndarray], dice: Mapping[str, np.ndarray]) -> bytes:
    """Dice of each case against the reference's volume in mL, both `[C]` by class; what lacks either is left out."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        named = len(volume_ml) <= _LEGEND
        figure, axis = _figure(6.4, 3.6, right=max(map(_inches, volume_ml)) + 0.4 if named else 0.1)
        for at, name in enumerate(volume_ml):
            size, score = volume_ml[name], dice[name]
            there = (size > 0) & ~np.isnan(score)
            axis.plot(size[there], score[there], linestyle="", markersize=5, label=_short(name), **_look(at))
        axis.set(xscale="log", ylim=(-0.03, 1.03), xlabel="reference volume (mL)", ylabel="Dice")
        _plain(axis.xaxis)
        axis.grid(color="0.9")
        if named:
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def bland_altman(
    prediction_ml: np.ndarray, reference_ml: np.ndarray, lines: Sequence[float | None], title: str
) -> bytes:
    """Difference of two volumes against their mean, `[C]` mL, with `lines`: bias, lower and upper limit."""
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
    """The share of voxels inside the reference against their mean probability: a line a class, of its `pooled_bins`.

    A class without bins has no line. A mark's area grows with its bin's share of voxels.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        names = max(map(_inches, bins)) + 0.4
        figure, axis = _figure(4.2 + names, 3.8, right=names)
        axis.plot((0, 1), (0, 1), "--", color="0.6", linewidth=1)
        for at, (name, own) in enumerate(bins.items()):
            if not own:
                continue
            there = [one for one in own if one["voxels"]]
            total = sum(one["voxels"] for one in there)
            x, y = ([one[key] for one in there] for key in ("probability", "inside"))
            look = _look(at)
            axis.plot(x, y, linewidth=1, color=look["color"], alpha=look["alpha"])
            axis.plot([], [], linestyle="", label=_short(name), **look)
            axis.scatter(x, y, [12 + 200 * one["voxels"] / total for one in there], linewidths=0, **look)
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="mean probability", ylabel="share inside the reference")
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def curves(points: Sequence[Mapping[str, Any]], x: str, y: str) -> bytes:
    """How a mean changes with one condition: a line a series, with its interval as a band.

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
        for at, series in enumerate(names):
            own = sorted((p for p in points if str(p["series"]) == series), key=lambda p: float(p["x"]))
            places = [float(point["x"]) for point in own]
            means = [math.nan if point["mean"] is None else float(point["mean"]) for point in own]
            ends = np.array([point["ci95"] or (math.nan, math.nan) for point in own], float)
            axis.plot(places, means, label=_short(series), markersize=5, **_look(at))
            axis.fill_between(places, ends[:, 0], ends[:, 1], color=_look(at)["color"], alpha=0.15, linewidth=0)
        axis.set(xlabel=x, ylabel=y)
        axis.grid(color="0.9")
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def _look(at: int) -> dict[str, Any]:
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "alpha": 0.75}


def _short(name: str) -> str:
    """A name that leaves room for the plot; what cannot be drawn is a question mark."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= 28 else f"{shown[:27]}…"


def _inches(name: str) -> float:
    """About how wide a name is drawn."""
    return 0.085 * len(_short(name))


def _figure(
    width: float, height: float, left: float = 0.6, right: float = 0.1, top: float = 0.1
) -> tuple[Figure, Axes]:
    """A figure and its axes, sizes and margins in inches: to lay it out by its text would take most of a report."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    sides = {"left": left / width, "right": 1 - right / width, "bottom": 0.5 / height, "top": 1 - top / height}
    return figure, figure.subplots(gridspec_kw=sides)


def _plain(axis: Axis) -> None:
    """Numbers on a logarithmic axis as they are read, without powers of ten, which are set as mathematics."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the words beside the picture have the name.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
