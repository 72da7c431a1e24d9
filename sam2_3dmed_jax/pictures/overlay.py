"""Overlay picture: slices with the contours of prediction and reference, and the prompts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import matplotlib
import numpy as np

from sam2_3dmed_jax.config import DEFAULT_CT_WINDOW
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import apply_window, window_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = 12  # maximum number of slices in a picture
PREDICTION, REFERENCE, INSIDE, OUTSIDE = "#ffb000", "#00c8ff", "#40ff40", "#ff4040"


def overlay(
    path: str | os.PathLike[str],
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    prompts: Sequence[VoxelPrompt] = (),
    window: str = DEFAULT_CT_WINDOW,
    title: str = "",
) -> None:
    """Write slices through the extent of the object (PNG).

    Args:
        path: the picture.
        volume: the scan.
        prediction: labels `[D, H, W]`; each label has a contour.
        reference: labels on the same grid, or None.
        prompts: each is drawn on its slice.
        window: as `data.preprocessing.window`.
        title: heading of the picture.

    Raises:
        UserError: the picture cannot be written; nothing is left behind.
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
        # In canonical orientation, rows run from anterior to posterior and columns from the patient's right to left, as
        # in radiology.
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=dy / dx, interpolation="nearest")
        if reference is not None:
            draw_contours(axis, reference[index], REFERENCE)
        draw_contours(axis, prediction[index], PREDICTION)
        for prompt in prompts:
            if prompt.slice == index:
                draw_prompt(axis, prompt)
        axis.set_title(f"slice {index}", fontsize=9)
    write_figure_with_legend(figure, path, title, reference is not None, bool(prompts))


def draw_contours(axis: plt.Axes, labels: np.ndarray, colour: str) -> None:
    """Draw the contour of each label of a plane."""
    for value in np.unique(labels[labels > 0]):
        axis.contour(labels == value, levels=[0.5], colors=[colour], linewidths=1.0)


def draw_prompt(axis: plt.Axes, prompt: VoxelPrompt) -> None:
    """Draw the points and the box of a prompt on its slice."""
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        axis.plot(x, y, "+", color=INSIDE if label else OUTSIDE, markersize=9, markeredgewidth=2)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=INSIDE))


def write_figure_with_legend(
    figure: plt.Figure, path: str | os.PathLike[str], title: str, reference: bool, prompts: bool
) -> None:
    """Add a title and a legend to a figure of slices, and write it (PNG).

    Args:
        figure: closed afterwards.
        path: the picture.
        title: heading of the picture.
        reference: whether contours of a reference are drawn.
        prompts: whether prompts are drawn.

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
    """Write a figure as PNG, and close it.

    Raises:
        UserError: the file cannot be written; nothing is left behind.
    """
    try:
        with atomic_path(path, ".png") as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    finally:
        plt.close(figure)


def _slices(prediction: np.ndarray, reference: np.ndarray | None, prompts: Sequence[VoxelPrompt]) -> list[int]:
    """Return evenly spaced slices over the extent of object and prompts, including the prompted ones."""
    present = prediction.any((1, 2))
    if reference is not None:
        present = present | reference.any((1, 2))
    prompted = sorted({prompt.slice for prompt in prompts})
    extent = [*np.flatnonzero(present).tolist(), *prompted] or [len(prediction) // 2]
    spaced = np.unique(np.linspace(min(extent), max(extent), PANELS).round().astype(int)).tolist()
    kept = prompted if len(prompted) <= PANELS else prompted[:: -(-len(prompted) // PANELS)]
    free = [index for index in spaced if index not in kept]
    while len(kept) + len(free) > PANELS:  # the slice nearest to a prompted one is left out
        free.remove(min(free, key=lambda index: min(abs(index - other) for other in kept)))
    return sorted([*kept, *free])
