"""Three-plane picture: axial, coronal and sagittal planes through the prompt of each object, in radiological view.

The patient's right is on the left of the picture, the head is up in coronal and sagittal planes, and sagittal planes
are seen from the patient's left (anterior is on the left of the picture). The aspect of pixels follows the spacing.
Oblique scans are shown along their own axes; the letters name the nearest anatomical direction.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patheffects import withStroke

from sam2_3dmed_jax.pictures.display_window import display_window
from sam2_3dmed_jax.pictures.overlay import (
    PREDICTION,
    REFERENCE,
    draw_contours,
    draw_prompt,
    given_colours,
    slice_title,
    write_figure_with_legend,
)
from sam2_3dmed_jax.pictures.view import Interval, centre_of_prompts, centre_voxel, zoom_box
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import Window, apply_window
from sam2_3dmed_jax.volume.label_layers import values_in

OBJECTS = 4  # maximum number of objects in a picture
SMALL = 0.4  # an object is enlarged if the part around it is less than this of the volume's height and width


class Plane(NamedTuple):
    """How one plane of `[D, H, W]` is shown; its rows and columns are the other two axes, in this order."""

    name: str
    axis: int  # perpendicular to the plane
    upwards: bool  # rows run upwards, so that the head is up
    letters: str  # top, bottom, left, right


PLANES = (
    Plane("axial", 0, False, "APRL"),
    Plane("coronal", 1, True, "SIRL"),
    Plane("sagittal", 2, True, "SIAP"),
)


def three_planes(
    path: str | os.PathLike[str],
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    prompts: Sequence[VoxelPrompt] = (),
    window: Window | None = None,
    title: str = "",
    objects: Mapping[int, ObjectLabel] = MappingProxyType({}),
) -> None:
    """Write three planes through each object (PNG): one row of whole planes, and one around an object that is small.

    The planes pass through the middle prompt of the object, or through its centre if it has none.

    Args:
        path: the picture.
        volume: the scan.
        prediction: labels `[D, H, W]`; each label has a contour.
        reference: labels on the same grid, or None.
        prompts: each is drawn if the axial plane is its slice.
        window: (level, width) in the values of the volume; None: `display_window`.
        title: heading of the picture.
        objects: names and colours of predicted objects, by id.

    Raises:
        UserError: the picture cannot be written; nothing is left behind.
    """
    level_and_width = window or display_window(volume, prompts)
    views = list(_views(volume, prediction, reference, prompts))
    heights = [volume.array.shape[p] * volume.spacing[p] for p in (1, 0)]
    # The height of a row is the height of its highest plane, in the scale of the axial one.
    height = min(5.0, 3.6 * max(heights) / max(volume.array.shape[2] * volume.spacing[2], 1e-6))
    figure, axes = plt.subplots(len(views), 3, figsize=(12, (height + 0.5) * len(views) + 0.9), squeeze=False)
    for row, view in zip(axes, views, strict=True):
        for axis, plane in zip(row, PLANES, strict=True):
            through = view.centre[plane.axis]
            _draw(axis, plane, view, volume, level_and_width)
            if reference is not None:
                draw_contours(axis, reference.take(through, plane.axis), REFERENCE)
            draw_contours(axis, prediction.take(through, plane.axis), PREDICTION, given_colours(objects))
            enlarged = ", enlarged" if view.box else ""
            name = f"{plane.name} {slice_title(volume, through, plane.axis)}"
            axis.set_title(f"object {view.object_id}, {name}{enlarged}", fontsize=9)
        for prompt in prompts:
            if prompt.slice == view.centre[0]:
                draw_prompt(row[0], prompt)
    write_figure_with_legend(figure, path, title, reference is not None, prompts, objects)


class _View(NamedTuple):
    """The three planes of a row."""

    object_id: int
    centre: tuple[int, int, int]
    box: tuple[Interval, Interval, Interval] | None  # the shown part of the volume; None: the whole volume


def _views(
    volume: Volume, prediction: np.ndarray, reference: np.ndarray | None, prompts: Sequence[VoxelPrompt]
) -> Iterator[_View]:
    """Yield the rows of the picture; without any object, one through the middle of the volume."""
    ids = {*values_in(prediction)} | {prompt.object_id for prompt in prompts}
    if reference is not None and not ids:
        ids = {*values_in(reference)}
    depth, height, width = prediction.shape
    middle = depth // 2, height // 2, width // 2
    if not ids:
        yield _View(0, middle, None)
    for object_id in sorted(ids)[:OBJECTS]:
        own = [prompt for prompt in prompts if prompt.object_id == object_id]
        mask = prediction == object_id
        if not mask.any() and reference is not None:
            mask = reference == object_id
        centre = centre_of_prompts(own, mask.shape) or (centre_voxel(mask) if mask.any() else middle)
        yield _View(object_id, centre, None)
        box = zoom_box(mask, own, volume.spacing, (0, 1, 2))
        if box and all(high - low + 1 < SMALL * n for (low, high), n in zip(box[1:], mask.shape[1:], strict=True)):
            yield _View(object_id, centre, box)


def _draw(axis: plt.Axes, plane: Plane, view: _View, volume: Volume, window: Window) -> None:
    rows, columns = (a for a in range(3) if a != plane.axis)
    image = apply_window(volume.array.take(view.centre[plane.axis], plane.axis), *window)
    aspect = volume.spacing[rows] / volume.spacing[columns]
    origin: Literal["lower", "upper"] = "lower" if plane.upwards else "upper"
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=aspect, origin=origin, interpolation="nearest")
    if view.box:
        (low, high), (left, right) = view.box[rows], view.box[columns]
        vertical = (low - 0.5, high + 0.5) if plane.upwards else (high + 0.5, low - 0.5)
        axis.set(xlim=(left - 0.5, right + 0.5), ylim=vertical)
    axis.axhline(view.centre[rows], color="white", linewidth=0.5, alpha=0.5)
    axis.axvline(view.centre[columns], color="white", linewidth=0.5, alpha=0.5)
    axis.set_axis_off()
    for letter, (x, y) in zip(plane.letters, ((0.5, 0.97), (0.5, 0.03), (0.03, 0.5), (0.97, 0.5)), strict=True):
        text = axis.text(x, y, letter, transform=axis.transAxes, color="white", ha="center", va="center", weight="bold")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])  # legible on bright bone
