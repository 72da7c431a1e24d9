"""Pictures: a contact sheet of slices with contours and prompts, and the curves of a training log.

Drawn off screen (Agg) and renamed into place, so a picture is whole or absent.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.segment import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import apply_window

TILES = 12  # slices of a contact sheet, at most
COLUMNS = 4
REFERENCE_COLOUR = "#00c8ff"
NOTE = "for research use only"


def overlay(
    path: str | os.PathLike[str],
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    prompts: Sequence[VoxelPrompt] = (),
    window: tuple[float, float] = (40.0, 400.0),
) -> None:
    """A contact sheet of up to 12 slices over the objects and a little beyond, prompted slices included.

    Args:
        path: a .png file.
        volume: the CT.
        prediction: integer `[D, H, W]`, each value contoured in its own colour.
        reference: the same, contoured in one colour; or None.
        prompts: shown on their slices: crosses inside, circles outside, boxes dashed, masks dotted.
        window: (level, width) in HU.

    Raises:
        UserError: the file cannot be written.
    """
    shown = prediction != 0 if reference is None else (prediction != 0) | (reference != 0)
    chosen = choose_slices(np.flatnonzero(shown.any((1, 2))), sorted({p.slice for p in prompts}), len(prediction))
    _, dy, dx = volume.spacing
    height, width = volume.array.shape[1] * dy, volume.array.shape[2] * dx
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    tile = 3.0  # inches
    figure = Figure(figsize=(tile * columns, (tile * height / width + 0.3) * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    ids = sorted({*np.unique(prediction).tolist(), *(p.object_id for p in prompts)} - {0})
    palette = matplotlib.colormaps["Set1"].colors  # type: ignore[attr-defined]
    colours = {value: palette[index % len(palette)] for index, value in enumerate(ids)}
    for axis, d in zip(axes, chosen, strict=False):
        axis.imshow(apply_window(volume.array[d], *window), cmap="gray", vmin=0, vmax=1, aspect=dy / dx)
        if reference is not None and reference[d].any():
            axis.contour(reference[d] != 0, levels=[0.5], colors=[REFERENCE_COLOUR], linewidths=1.0)
        for value in ids:
            if (prediction[d] == value).any():
                axis.contour(prediction[d] == value, levels=[0.5], colors=[colours[value]], linewidths=1.2)
        for prompt in prompts:
            if prompt.slice == d:
                _draw_prompt(axis, prompt, colours[prompt.object_id])
        mark = " (prompted)" if any(prompt.slice == d for prompt in prompts) else ""
        axis.set_title(f"slice {d}{mark}", fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    handles = [Line2D([], [], color=colours[value], label=f"prediction {value}") for value in ids]
    if reference is not None:
        handles.append(Line2D([], [], color=REFERENCE_COLOUR, label="reference"))
    if prompts:
        handles.append(Line2D([], [], color="0.4", marker="P", linestyle="", label="prompt"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, title=NOTE)
    _save(figure, path)


def choose_slices(object_slices: np.ndarray, prompted: Sequence[int], depth: int) -> list[int]:
    """Up to 12 slices spread evenly from just before the object to just past it; prompted ones replace neighbours."""
    present = [*object_slices.tolist(), *prompted] or [depth // 2]
    first, last = max(min(present) - 1, 0), min(max(present) + 1, depth - 1)
    chosen = sorted(set(np.linspace(first, last, min(TILES, last - first + 1)).round().astype(int).tolist()))
    kept = [prompted[i] for i in np.linspace(0, len(prompted) - 1, min(TILES, len(prompted))).round().astype(int)]
    free = [d for d in chosen if d not in kept]
    for _ in range(len(kept) + len(free) - TILES):
        free.remove(min(free, key=lambda d: min(abs(d - p) for p in kept)))
    return sorted({*kept, *free})


def loss_curve(path: str | os.PathLike[str], log_csv: str | os.PathLike[str]) -> None:
    """Loss and its terms (logarithmic), and the clips' Dice, over the steps of a run's `log.csv`.

    Raises:
        UserError: the log cannot be read or has no rows, or the picture cannot be written.
    """
    try:
        with open(log_csv, newline="") as file:
            rows = list(csv.DictReader(file))
        steps = [int(row["step"]) for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{log_csv}: it cannot be read as a training log ({error}); give a run's log.csv") from None
    if not rows:
        raise UserError(f"{log_csv}: it has no rows; train for at least training.log_every steps")
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    for name in ("loss", "loss_seg", "loss_srpp", "loss_bd"):
        values = [float(row.get(name) or "nan") for row in rows]
        if any(value > 0 for value in values):
            left.plot(steps, values, label=name, linewidth=2.0 if name == "loss" else 1.0)
    left.set(xlabel="step", ylabel="loss (terms unweighted)", yscale="log")
    left.legend(loc="upper left", fontsize=8)
    if "dice" in rows[0]:
        right = left.twinx()
        right.plot(steps, [float(row["dice"] or "nan") for row in rows], color="0.3", linestyle="--", label="clip Dice")
        right.set(ylabel="Dice on training clips", ylim=(0, 1))
        right.legend(loc="upper right", fontsize=8)
    left.grid(alpha=0.3)
    _save(figure, path)


def _draw_prompt(axis: matplotlib.axes.Axes, prompt: VoxelPrompt, colour: tuple[float, float, float]) -> None:
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        axis.plot(x, y, marker="P" if label else "o", color=colour, markeredgecolor="white", markersize=7)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linestyle="--", linewidth=1.0)
    if prompt.mask is not None and prompt.mask.any():
        axis.contour(prompt.mask, levels=[0.5], colors=["yellow"], linestyles="dotted", linewidths=1.0)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(temporary))
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); give a folder with room and write access"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
