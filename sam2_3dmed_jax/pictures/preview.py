"""Preview: a picture of training clips as the model receives them, so that a person can check the data.

A clip is two rows of tiles in the order of propagation. The upper row shows whole slices, windowed, resized and
augmented, with the outlines of the masks and the prompts. The lower row enlarges the objects and shows their boundary
targets.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke

from sam2_3dmed_jax.config import ExperimentConfig, ModelConfig
from sam2_3dmed_jax.data.clips import RenderedClip
from sam2_3dmed_jax.data.prepared import PreparedDataset
from sam2_3dmed_jax.data.sample import sample_clips
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.targets import boundary_target
from sam2_3dmed_jax.pictures.colours import COLOURS
from sam2_3dmed_jax.pictures.overlay import plt, save_figure
from sam2_3dmed_jax.sam2.presets import preset_config

DEFAULT = ExperimentConfig(ModelConfig(image_size=512))
DATASET_CLIPS = 8  # clips of a dataset
CLIPS = 24  # maximum number of clips in a picture, because its pixels are limited
POINT_OUTSIDE, POINT, BOX_CORNER = 0, 1, 2  # labels of prompt tokens in SAM 2
_HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="black")]  # legible on bright bone
_GAP, _BETWEEN, _HEADER, _TITLE, _TOP, _BOTTOM = 0.06, 0.22, 0.32, 0.2, 0.5, 0.75  # inches


def preview_dataset(path: str | os.PathLike[str], dataset: PreparedDataset, config: ExperimentConfig = DEFAULT) -> None:
    """Write the preview of clips of `DATASET_CLIPS` cases, cut by the settings of an experiment.

    Raises:
        UserError: settings that do not fit the dataset, a damaged shard, or a file that cannot be written.
    """
    model = config.model if isinstance(config.model, ModelConfig) else ModelConfig()  # a U-Net draws no clips
    size = preset_config(model.preset, model.image_size).image_size
    clips, ids = sample_clips(dataset, config.data, size, DATASET_CLIPS, config.training.seed)
    write_preview(path, clips, model, ids, f"{dataset.name}: training clips")


def write_preview(
    path: str | os.PathLike[str],
    clips: Sequence[RenderedClip],
    model: ModelConfig,
    names: Sequence[str] = (),
    title: str = "",
) -> None:
    """Write the preview of clips (PNG).

    Args:
        path: the picture.
        clips: without a batch axis; only the first `CLIPS` are drawn.
        model: whether it has BD, and the width of its boundary targets.
        names: of the clips, such as the ids of their cases.
        title: heading of the picture.

    Raises:
        UserError: no clips, or a file that cannot be written; nothing is left behind.
    """
    if not clips:
        raise UserError(f"{path}: no clips to draw; give cases that contain a class to segment")
    save_figure(preview_figure(clips, model, names, title), path)


@dataclass(frozen=True)
class _Layout:
    """Positions of tiles in a figure, in inches from its upper left corner."""

    steps: int  # tiles in a row
    clips: int

    @property
    def tile(self) -> float:
        """Side of a tile; tiles of short clips are larger."""
        return min(max(16 / self.steps, 2.2), 3.0)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure."""
        block = _BETWEEN + _HEADER + _TITLE + 2 * self.tile + _GAP
        return self.steps * (self.tile + _GAP) + _GAP, _TOP + self.clips * block + _BOTTOM

    def top(self, number: int) -> float:
        """Return the top of the header of a clip."""
        return _TOP + number * (_BETWEEN + _HEADER + _TITLE + 2 * self.tile + _GAP) + _BETWEEN

    def add_tile(self, figure: plt.Figure, column: int, top: float) -> plt.Axes:
        """Add the axes of a tile."""
        (width, height), tile = self.size, self.tile
        box = (_GAP + column * (tile + _GAP)) / width, 1 - (top + tile) / height, tile / width, tile / height
        return figure.add_axes(box, xticks=[], yticks=[], facecolor="black")


def preview_figure(
    clips: Sequence[RenderedClip], model: ModelConfig, names: Sequence[str] = (), title: str = ""
) -> plt.Figure:
    """Return the preview as a figure. Its axes are, clip by clip, D whole slices and then D enlarged ones."""
    drawn = clips[:CLIPS]
    layout = _Layout(max(len(clip["slices"]) for clip in drawn), len(drawn))
    figure = plt.figure(figsize=layout.size)
    for number, clip in enumerate(drawn):
        name = f" ({names[number]})" if number < len(names) else ""
        header = f"clip {number + 1}{name}: {_direction(clip)}\n{_prompts(clip)}"
        _draw_clip(figure, layout, number, clip, header, model)
    left_out = f"; the first {CLIPS} of {len(clips)} clips" if len(clips) > CLIPS else ""
    heading = f"{title or 'Training clips as the model sees them'}{left_out} (for research use only)"
    height = layout.size[1]
    figure.text(0.5, 1 - 0.1 / height, heading, ha="center", va="top", fontsize=11)
    size = drawn[0]["slices"].shape[-1]
    subheading = (
        f"windowed, {size} x {size} px, augmented; mm from the lowest slice; the patient's right is left unless flipped"
    )
    figure.text(0.5, 1 - 0.34 / height, subheading, ha="center", va="top", fontsize=8)
    objects = max(clip["masks"].shape[1] for clip in drawn)
    columns = 6 if layout.steps > 4 else 4
    figure.legend(handles=_legend(objects, model.bd), loc="lower center", ncols=columns, fontsize=8)
    return figure


def _draw_clip(
    figure: plt.Figure, layout: _Layout, number: int, clip: RenderedClip, header: str, model: ModelConfig
) -> None:
    """Draw the header and the two rows of tiles of a clip."""
    top = layout.top(number)
    width, height = layout.size
    figure.text(_GAP / width, 1 - top / height, header, va="top", fontsize=9)
    top += _HEADER + _TITLE
    zoom = _zoom(clip)
    targets = _boundary(clip, model) if model.bd else None
    for d in range(len(clip["slices"])):
        axis = layout.add_tile(figure, d, top)
        _draw_slice(axis, clip, d)
        if clip["slice_valid"][d]:
            x0, y0, side = zoom
            axis.add_patch(Rectangle((x0, y0), side, side, fill=False, color="white", linewidth=0.6, alpha=0.6))
        axis.set_title(_position(clip, d), fontsize=8, pad=3)
        _write_states(axis, _states(clip, d))
    for d in range(len(clip["slices"])):
        _draw_slice(layout.add_tile(figure, d, top + layout.tile + _GAP / 2), clip, d, zoom, targets)


def _draw_slice(
    axis: plt.Axes,
    clip: RenderedClip,
    d: int,
    zoom: tuple[float, float, float] | None = None,
    targets: np.ndarray | None = None,
) -> None:
    """Draw a slice with its masks and prompts; with `zoom` (x, y, side), that part of it with its boundary targets."""
    size = clip["slices"].shape[-1]
    x0, y0, side = zoom or (-0.5, -0.5, size)
    extent = -0.5, size - 0.5, size - 0.5, -0.5
    axis.imshow(clip["slices"][d], cmap="gray", vmin=0, vmax=1, extent=extent)
    if not clip["slice_valid"][d]:
        axis.add_patch(Rectangle((-0.5, -0.5), size, size, fill=False, hatch="//", edgecolor="0.35", linewidth=0))
        axis.text(0.5, 0.5, "padding", transform=axis.transAxes, color="white", ha="center", va="center", fontsize=9)
    coarse = axis.bbox.width / side > 2  # screen pixels per pixel: an outline fits into the band of a boundary
    for k in np.flatnonzero(clip["object_valid"]).tolist():
        colour = _colour(k)
        if targets is not None and targets[d, k].any():
            band = np.full((size, size, 4), to_rgba(colour))
            band[..., 3] = (0.55 if coarse else 0.8) * targets[d, k]
            axis.imshow(band, extent=extent)
            colour = "white" if coarse else ""
        if colour:
            _outline(axis, clip["masks"][d, k] > 0, colour, "-" if d >= clip["prompt_step"][k] else ":")
    for k in np.flatnonzero(clip["object_valid"]).tolist():
        if clip["prompt_step"][k] == d:
            _draw_prompt(axis, clip, k)
    axis.set(xlim=(x0, x0 + side), ylim=(y0 + side, y0))


def _outline(axis: plt.Axes, mask: np.ndarray, colour: str, style: str) -> None:
    """Draw a line along the outer edges of a mask's pixels, also at the border of the slice."""
    if not mask.any():
        return
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # A contour cuts the corners of pixels. Small objects are therefore drawn with several subpixels per pixel.
    parts = int(np.clip(256 // max(part.shape), 1, 8))
    fine = np.pad(part.repeat(parts, 0).repeat(parts, 1), 1).astype(float)
    y, x = (
        first - 0.5 + (np.arange(length) - 0.5) / parts
        for first, length in zip((rows[0], columns[0]), fine.shape, strict=True)
    )
    axis.contour(x, y, fine, levels=[0.5], colors=[colour], linewidths=1.1, linestyles=[style])


def _draw_prompt(axis: plt.Axes, clip: RenderedClip, k: int) -> None:
    """Draw the points and the box of an object, in its colour with a dark rim."""
    colour, coords, labels = _colour(k), clip["coords"][k], clip["point_labels"][k]
    for (x, y), label in zip(coords, labels, strict=True):
        if label in (POINT, POINT_OUTSIDE):
            marker = "+" if label == POINT else "x"
            axis.plot(x, y, marker, color="black", markersize=11, markeredgewidth=3.6)
            axis.plot(x, y, marker, color=colour, markersize=10, markeredgewidth=1.8)
    for corner in np.flatnonzero(labels == BOX_CORNER):
        (x0, y0), (x1, y1) = coords[corner], coords[corner + 1]
        for edge, line, style in (("black", 2.8, "-"), (colour, 1.3, "--")):
            box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=line, linestyle=style)
            axis.add_patch(box)


def _boundary(clip: RenderedClip, model: ModelConfig) -> np.ndarray:
    """Return the boundary targets that the loss uses, on valid slices from an object's prompt on, `[D, K, S, S]`."""
    targets = np.asarray(boundary_target(jnp.asarray(clip["masks"]), model.boundary.width))
    steps = np.arange(len(clip["slices"]))[:, None]
    counts = clip["slice_valid"][:, None] & clip["object_valid"] & (steps >= clip["prompt_step"])
    present = clip["masks"].any((2, 3))
    return targets * (counts & present)[..., None, None]


def _zoom(clip: RenderedClip) -> tuple[float, float, float]:
    """Return (x, y, side) of the square that contains all objects and prompts of a clip, with a margin."""
    size = clip["slices"].shape[-1]
    rows, columns = np.nonzero(clip["masks"].any((0, 1)))
    drawn = clip["coords"][clip["object_valid"]][clip["point_labels"][clip["object_valid"]] >= 0]
    x, y = np.concatenate([columns, drawn[:, 0]]), np.concatenate([rows, drawn[:, 1]])
    if not len(x):
        return -0.5, -0.5, float(size)
    extent = max(np.ptp(x), np.ptp(y)) + 1
    side = float(min(max(1.25 * extent + 4, size / 8), size))
    corner = [float(np.clip((n.min() + n.max() - side) / 2, -0.5, size - 0.5 - side)) for n in (x, y)]
    return corner[0], corner[1], side


def _states(clip: RenderedClip, d: int) -> list[tuple[int, str]]:
    """Return each object of a slice with its state."""
    states = []
    for k in np.flatnonzero(clip["object_valid"] & clip["slice_valid"][d]).tolist():
        prompted = int(clip["prompt_step"][k])
        after = "present" if clip["masks"][d, k].any() else "absent"
        state = "prompted" if d == prompted else "before its prompt" if d < prompted else after
        states.append((k, f"{k + 1} {state}"))
    return states


def _write_states(axis: plt.Axes, states: Sequence[tuple[int, str]]) -> None:
    """Write the states of objects in their colours, from the bottom of a tile."""
    for line, (k, state) in enumerate(reversed(states)):
        corner = (4, 4 + 10 * line)
        text = axis.annotate(state, corner, xycoords="axes points", color=_colour(k), fontsize=7.5, weight="bold")
        text.set_path_effects(_HALO)


def _position(clip: RenderedClip, d: int) -> str:
    index = f"slice {clip['slice_index'][d]:g}"
    return f"{index}, {clip['position_mm'][d]:.1f} mm" if clip["slice_valid"][d] else f"{index}, outside"


def _direction(clip: RenderedClip) -> str:
    """Return the direction and the stride. A clip whose object is absent jumps after its first slice."""
    strides = np.diff(clip["slice_index"])
    if not len(strides):
        return "one slice"
    towards = "propagated up, towards the head" if strides[0] > 0 else "propagated down, towards the feet"
    stride = abs(strides[-1])
    jump = f", after a jump of {abs(strides[0]):g}" if (strides != strides[0]).any() else ""
    return f"{towards}, {stride:g} slice{'s' * bool(stride != 1)} per step{jump}"


def _prompts(clip: RenderedClip) -> str:
    """Return the prompt of each object."""
    sentences = []
    for k, valid in enumerate(clip["object_valid"]):
        labels = clip["point_labels"][k]
        kinds = ["a box"] * bool((labels == BOX_CORNER).any())
        points = int(((labels == POINT) | (labels == POINT_OUTSIDE)).sum())
        kinds += [f"{points} points" if points > 1 else "a point"] * bool(points)
        how = f"prompted by {' and '.join(kinds) or 'nothing'} on step {clip['prompt_step'][k] + 1}"
        sentences.append(f"object {k + 1} {how if valid else 'is not in this clip'}")
    return "; ".join(sentences)


def _legend(objects: int, boundary: bool) -> list:
    """Return the handles of the legend."""
    line = plt.Line2D
    handles: list = [Patch(color=_colour(k), label=f"object {k + 1}") for k in range(min(objects, len(COLOURS)))]
    handles.append(line([], [], color="0.4", label="outline of the mask"))
    handles.append(line([], [], color="0.4", linestyle=":", label="before its prompt: not trained on"))
    if boundary:
        handles.append(Patch(color="0.4", alpha=0.55, label="boundary target (lower row)"))
    handles.append(line([], [], color="0.2", marker="+", linestyle="", markersize=9, label="point inside"))
    handles.append(line([], [], color="0.2", marker="x", linestyle="", markersize=8, label="point outside"))
    handles.append(Patch(facecolor="none", edgecolor="0.2", linestyle="--", label="box"))
    handles.append(Patch(facecolor="none", edgecolor="0.7", linewidth=0.6, label="part enlarged in the lower row"))
    return handles


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]
