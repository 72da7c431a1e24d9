"""Pictures: slices with contours of prediction and reference and the prompts, and the loss curve of a run."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence

import matplotlib
import numpy as np

from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.image_file import written_whole
from sam2_3dmed_jax.volume.intensity import apply_window, window_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = 12  # slices on a contact sheet, at most
PREDICTION, REFERENCE, INSIDE, OUTSIDE = "#ffb000", "#00c8ff", "#40ff40", "#ff4040"


def overlay(
    path: str | os.PathLike[str],
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    prompts: Sequence[VoxelPrompt] = (),
    window: str = "soft_tissue",
    title: str = "",
) -> None:
    """Write a contact sheet (PNG) of slices over the object.

    Args:
        path: the picture.
        volume: the scan.
        prediction: labels `[D, H, W]`; contours around each label.
        reference: labels on the same grid, or None.
        prompts: drawn on their slices.
        window: as `data.preprocessing.window`.
        title: above the sheet.
    """
    shown = _slices(prediction, reference, prompts)
    grey = apply_window(volume.array[shown], *window_of(volume, window))
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    _, dy, dx = volume.spacing
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.5 * rows + 0.6), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, index, image in zip(axes.flat, shown, grey, strict=False):
        # Canonical rows run from anterior to posterior and columns from the patient's right to left: radiology's view.
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=dy / dx, interpolation="nearest")
        if reference is not None:
            draw_contours(axis, reference[index], REFERENCE)
        draw_contours(axis, prediction[index], PREDICTION)
        for prompt in prompts:
            if prompt.slice == index:
                draw_prompt(axis, prompt)
        axis.set_title(f"slice {index}", fontsize=9)
    finish_sheet(figure, path, title, reference is not None, bool(prompts))


def loss_curve(path: str | os.PathLike[str], log: str | os.PathLike[str]) -> None:
    """Write the losses and the training Dice of a run's `log.csv` against the step (PNG)."""
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, (losses, dice) = plt.subplots(1, 2, figsize=(10, 4))
    for name in ("loss", "loss_seg", "loss_srpp", "loss_bd", "loss_object_score"):
        values = [float(row[name]) if row.get(name) else math.nan for row in rows]
        if not all(map(math.isnan, values)):
            losses.plot(steps, values, label=name)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    dice.plot(steps, [float(row["dice"]) for row in rows], color=PREDICTION)
    dice.set(xlabel="step", ylabel="Dice of training clips", ylim=(0, 1))
    figure.tight_layout()
    save_figure(figure, path)


def draw_contours(axis: plt.Axes, labels: np.ndarray, colour: str) -> None:
    """Outline each label of a plane."""
    for value in np.unique(labels[labels > 0]):
        axis.contour(labels == value, levels=[0.5], colors=[colour], linewidths=1.0)


def draw_prompt(axis: plt.Axes, prompt: VoxelPrompt) -> None:
    """Mark the points and the box of a prompt on its slice."""
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        axis.plot(x, y, "+", color=INSIDE if label else OUTSIDE, markersize=9, markeredgewidth=2)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=INSIDE))


def finish_sheet(figure: plt.Figure, path: str | os.PathLike[str], title: str, reference: bool, prompts: bool) -> None:
    """Say what the colours of a sheet of slices are, and write it as PNG; `reference`, `prompts`: they are drawn.

    Raises:
        UserError: the file cannot be written; nothing is left behind.
    """
    handles = [plt.Line2D([], [], color=PREDICTION, label="prediction")]
    if reference:
        handles.append(plt.Line2D([], [], color=REFERENCE, label="reference"))
    if prompts:
        handles.append(plt.Line2D([], [], color=INSIDE, marker="+", linestyle="", label="prompt"))
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False)
    figure.suptitle(title or "For research use only", fontsize=10)
    figure.tight_layout(rect=(0, 0.04, 1, 0.99), h_pad=2.0)
    save_figure(figure, path)


def save_figure(figure: plt.Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG under a temporary name, rename it, and close it.

    Raises:
        UserError: the file cannot be written; nothing is left behind.
    """
    try:
        with written_whole(path, ".png") as part:
            figure.savefig(part, dpi=110, format="png")
    finally:
        plt.close(figure)


def _slices(prediction: np.ndarray, reference: np.ndarray | None, prompts: Sequence[VoxelPrompt]) -> list[int]:
    """Evenly spread slices over the extent of object and prompts, with the prompted ones among them."""
    holds = prediction.any((1, 2))
    if reference is not None:
        holds = holds | reference.any((1, 2))
    prompted = sorted({prompt.slice for prompt in prompts})
    extent = [*np.flatnonzero(holds).tolist(), *prompted] or [len(prediction) // 2]
    spread = np.unique(np.linspace(min(extent), max(extent), PANELS).round().astype(int)).tolist()
    kept = prompted if len(prompted) <= PANELS else prompted[:: -(-len(prompted) // PANELS)]
    free = [index for index in spread if index not in kept]
    while len(kept) + len(free) > PANELS:  # the nearest slice gives way to a prompted one
        free.remove(min(free, key=lambda index: min(abs(index - other) for other in kept)))
    return sorted([*kept, *free])
