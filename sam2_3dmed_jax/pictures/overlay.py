"""Overlay picture: whole and enlarged slices with the contours of prediction and reference, and the prompts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import matplotlib
import numpy as np

from sam2_3dmed_jax.pictures.display_window import display_window
from sam2_3dmed_jax.pictures.view import Interval, slices_through, zoom_box
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.geometry import Volume, plane_in_file
from sam2_3dmed_jax.volume.intensity import Window, apply_window
from sam2_3dmed_jax.volume.label_layers import values_in

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = 8  # maximum number of whole slices in a picture
ZOOMED_OBJECTS = 3  # maximum number of objects with a row of enlarged slices
COLUMNS = 4
PREDICTION, REFERENCE, INSIDE, OUTSIDE = "#ffb000", "#00c8ff", "#40ff40", "#ff4040"


def overlay(
    path: str | os.PathLike[str],
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    prompts: Sequence[VoxelPrompt] = (),
    window: Window | None = None,
    title: str = "",
    objects: Mapping[int, ObjectLabel] = MappingProxyType({}),
) -> None:
    """Write a row of enlarged slices around the prompts of each object, and whole slices through all objects (PNG).

    Args:
        path: the picture.
        volume: the scan.
        prediction: labels `[D, H, W]`; each label has a contour.
        reference: labels on the same grid, or None.
        prompts: each is drawn on its slice.
        window: (level, width) in the values of the volume; None: `display_window`.
        title: heading of the picture.
        objects: names and colours of predicted objects, by id.

    Raises:
        UserError: the picture cannot be written; nothing is left behind.
    """
    level_and_width = window or display_window(volume, prompts)
    zooms = list(_zooms(volume, prediction, reference, prompts))
    whole = slices_through(_present(prediction, reference), prompts, COLUMNS, PANELS)
    rows = len(zooms) + math.ceil(len(whole) / COLUMNS)
    columns = COLUMNS if zooms else min(COLUMNS, len(whole))
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.5 * rows + 0.6), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()

    def draw(axis: plt.Axes, index: int) -> None:
        _draw_slice(axis, volume, index, level_and_width)
        if reference is not None:
            draw_contours(axis, reference[index], REFERENCE)
        draw_contours(axis, prediction[index], PREDICTION, given_colours(objects))
        for prompt in prompts:
            if prompt.slice == index:
                draw_prompt(axis, prompt)

    for row, zoom in zip(axes, zooms, strict=False):
        for axis, index in zip(row, zoom.slices, strict=False):
            draw(axis, index)
            (y0, y1), (x0, x1) = zoom.rows, zoom.columns
            axis.set(xlim=(x0 - 0.5, x1 + 0.5), ylim=(y1 + 0.5, y0 - 0.5))
            width = f"{(x1 - x0 + 1) * volume.spacing[2]:.0f} mm wide"
            axis.set_title(f"object {zoom.object_id}, {slice_title(volume, index)} ({width})", fontsize=9)
    for axis, index in zip(axes[len(zooms) :].flat, whole, strict=False):
        draw(axis, index)
        for zoom in zooms:
            if index in zoom.slices:
                _draw_frame(axis, zoom)
        axis.set_title(slice_title(volume, index), fontsize=9)
    write_figure_with_legend(figure, path, title, reference is not None, prompts, objects)


class _Zoom(NamedTuple):
    """A row of enlarged slices."""

    object_id: int
    slices: list[int]
    rows: Interval
    columns: Interval


def _zooms(
    volume: Volume, prediction: np.ndarray, reference: np.ndarray | None, prompts: Sequence[VoxelPrompt]
) -> Iterator[_Zoom]:
    """Yield the enlarged slices of the first objects that are prompted or predicted."""
    ids = {*values_in(prediction)} | {prompt.object_id for prompt in prompts}
    for object_id in sorted(ids)[:ZOOMED_OBJECTS]:
        own = [prompt for prompt in prompts if prompt.object_id == object_id]
        mask = prediction == object_id
        if reference is not None:
            mask |= reference == object_id
        box = zoom_box(mask, own, volume.spacing, (1, 2))
        if box is not None:
            yield _Zoom(object_id, slices_through(mask.any((1, 2)), own, COLUMNS, COLUMNS), box[1], box[2])


def _present(prediction: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """Return which slices have an object, bool `[D]`."""
    maps = [prediction] if reference is None else [prediction, reference]
    return np.any([labels.any((1, 2)) for labels in maps], axis=0)


def slice_title(volume: Volume, index: int, axis: int = 0) -> str:
    """Return the index of a canonical plane in the file, such as "k = 12", as users type and read it."""
    letter, number = plane_in_file(volume.grid, axis, index)
    return f"{letter} = {number}"


def _draw_slice(axis: plt.Axes, volume: Volume, index: int, window: Window) -> None:
    """Draw a canonical slice: rows from anterior to posterior, columns from the patient's right to left."""
    _, dy, dx = volume.spacing
    image = apply_window(volume.array[index], *window)
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=dy / dx, interpolation="nearest")


def _draw_frame(axis: plt.Axes, zoom: _Zoom) -> None:
    """Draw the border of the enlarged part on a whole slice."""
    (y0, y1), (x0, x1) = zoom.rows, zoom.columns
    frame = plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0 + 1, y1 - y0 + 1, fill=False, color="white", linewidth=0.6)
    axis.add_patch(frame)


def draw_contours(
    axis: plt.Axes, labels: np.ndarray, colour: str, own: Mapping[int, str] = MappingProxyType({})
) -> None:
    """Draw the contour of each label of a plane, in one colour or in its own; a plane may have one row or column."""
    limits = axis.axis()
    rows, columns = (np.arange(-1, length + 1) for length in labels.shape)
    for value in np.unique(labels[labels > 0]).tolist():
        mask = np.pad(labels == value, 1)
        axis.contour(columns, rows, mask, levels=[0.5], colors=[own.get(value, colour)], linewidths=1.0)
    axis.axis(limits)


def given_colours(objects: Mapping[int, ObjectLabel]) -> dict[int, str]:
    """Return the colours that users give to objects, by id; other predictions are amber, which is legible on grey."""
    return {number: label.color for number, label in objects.items() if label.color}


def draw_prompt(axis: plt.Axes, prompt: VoxelPrompt) -> None:
    """Draw the points and the box of a prompt on its slice."""
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        axis.plot(x, y, "+", color=INSIDE if label else OUTSIDE, markersize=9, markeredgewidth=2)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=INSIDE))


def write_figure_with_legend(
    figure: plt.Figure,
    path: str | os.PathLike[str],
    title: str,
    reference: bool,
    prompts: Sequence[VoxelPrompt],
    objects: Mapping[int, ObjectLabel],
) -> None:
    """Add a title and a legend to a figure of slices, and write it (PNG).

    Args:
        figure: closed afterwards.
        path: the picture.
        title: heading of the picture.
        reference: whether contours of a reference are drawn.
        prompts: the drawn prompts.
        objects: names and colours of predicted objects, by id.

    Raises:
        UserError: the file cannot be written; nothing is left behind.
    """
    own = given_colours(objects)
    handles = [plt.Line2D([], [], color=colour, label=objects[number].name) for number, colour in own.items()]
    if not objects or len(own) < len(objects):
        handles.insert(0, plt.Line2D([], [], color=PREDICTION, label="prediction"))
    if reference:
        handles.append(plt.Line2D([], [], color=REFERENCE, label="reference"))
    if prompts:
        handles.append(plt.Line2D([], [], color=INSIDE, marker="+", linestyle="", label="prompt"))
    if any(0 in prompt.labels for prompt in prompts):
        handles.append(plt.Line2D([], [], color=OUTSIDE, marker="+", linestyle="", label="click outside"))
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False)
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
