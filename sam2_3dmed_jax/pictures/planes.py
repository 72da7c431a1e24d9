"""Three-plane picture: axial, coronal and sagittal planes through the centre of each object, in radiological view.

The patient's right is on the left of the picture, the head is up in coronal and sagittal planes, and sagittal planes
are seen from the patient's left (anterior is on the left of the picture). The aspect of pixels follows the spacing.
Oblique scans are shown along their own axes; the letters name the nearest anatomical direction.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patheffects import withStroke

from sam2_3dmed_jax.config import DEFAULT_CT_WINDOW
from sam2_3dmed_jax.pictures.overlay import PREDICTION, REFERENCE, draw_contours, draw_prompt, write_figure_with_legend
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import apply_window, window_of

ROWS = 6  # maximum number of objects in a picture


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
    window: str = DEFAULT_CT_WINDOW,
    title: str = "",
) -> None:
    """Write three planes through the centre of each object (PNG), one row per object.

    Args:
        path: the picture.
        volume: the scan.
        prediction: labels `[D, H, W]`; each label has a contour.
        reference: labels on the same grid, or None.
        prompts: each is drawn if the axial plane is its slice.
        window: as `data.preprocessing.window`.
        title: heading of the picture.

    Raises:
        UserError: the picture cannot be written; nothing is left behind.
    """
    level_and_width = window_of(volume, window)
    centres = _centres(prediction, reference, prompts)
    heights = [volume.array.shape[p] * volume.spacing[p] for p in (1, 0)]
    # The height of a row is the height of its highest plane, in the scale of the axial one.
    height = min(5.0, 3.6 * max(heights) / max(volume.array.shape[2] * volume.spacing[2], 1e-6))
    figure, axes = plt.subplots(len(centres), 3, figsize=(12, (height + 0.5) * len(centres) + 0.9), squeeze=False)
    for row, (object_id, centre) in zip(axes, centres, strict=True):
        for axis, plane in zip(row, PLANES, strict=True):
            _draw(axis, plane, centre, volume, level_and_width)
            if reference is not None:
                draw_contours(axis, reference.take(centre[plane.axis], plane.axis), REFERENCE)
            draw_contours(axis, prediction.take(centre[plane.axis], plane.axis), PREDICTION)
            axis.set_title(f"object {object_id}, {plane.name} {centre[plane.axis]}", fontsize=9)
        for prompt in prompts:
            if prompt.slice == centre[0]:
                draw_prompt(row[0], prompt)
    write_figure_with_legend(figure, path, title, reference is not None, bool(prompts))


def centre_voxel(mask: np.ndarray) -> tuple[int, int, int]:
    """Return a voxel `(d, h, w)` of a mask `[D, H, W]` near its centre of mass, on the nearest axial slice."""
    area = np.count_nonzero(mask, axis=(1, 2))
    slices = np.flatnonzero(area)
    d = int(slices[np.abs(slices - np.average(slices, weights=area[slices])).argmin()])
    voxels = np.argwhere(mask[d])
    h, w = voxels[((voxels - voxels.mean(0)) ** 2).sum(1).argmin()].tolist()
    return d, h, w


def _centres(
    prediction: np.ndarray, reference: np.ndarray | None, prompts: Sequence[VoxelPrompt]
) -> list[tuple[int, tuple[int, int, int]]]:
    """Return object ids and their centres; of an object without a mask, the centre of its prompted slice."""
    ids = {int(value) for value in np.unique(prediction) if value} | {prompt.object_id for prompt in prompts}
    if reference is not None and not ids:
        ids = {int(value) for value in np.unique(reference) if value}
    depth, height, width = prediction.shape
    centres = []
    for object_id in sorted(ids)[:ROWS]:
        mask = prediction == object_id
        if not mask.any() and reference is not None:
            mask = reference == object_id
        prompted = [prompt.slice for prompt in prompts if prompt.object_id == object_id] or [depth // 2]
        middle = prompted[len(prompted) // 2], height // 2, width // 2
        centres.append((object_id, centre_voxel(mask) if mask.any() else middle))
    return centres or [(0, (depth // 2, height // 2, width // 2))]


def _draw(
    axis: plt.Axes, plane: Plane, centre: tuple[int, int, int], volume: Volume, window: tuple[float, float]
) -> None:
    rows, columns = (a for a in range(3) if a != plane.axis)
    image = apply_window(volume.array.take(centre[plane.axis], plane.axis), *window)
    aspect = volume.spacing[rows] / volume.spacing[columns]
    origin: Literal["lower", "upper"] = "lower" if plane.upwards else "upper"
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=aspect, origin=origin, interpolation="nearest")
    axis.axhline(centre[rows], color="white", linewidth=0.5, alpha=0.5)
    axis.axvline(centre[columns], color="white", linewidth=0.5, alpha=0.5)
    axis.set_axis_off()
    for letter, (x, y) in zip(plane.letters, ((0.5, 0.97), (0.5, 0.03), (0.03, 0.5), (0.97, 0.5)), strict=True):
        text = axis.text(x, y, letter, transform=axis.transAxes, color="white", ha="center", va="center", weight="bold")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])  # legible on bright bone
