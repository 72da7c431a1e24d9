"""The preview: a contact sheet of training clips as the model sees them, so that a person can check the data.

A clip is two rows of tiles in walking order. The upper shows whole slices, windowed, resized and augmented, with
outlines of the masks and with the prompts; the lower enlarges the objects, with the boundary target that training
makes from their masks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke

from sam2_3dmed_jax.config import ExperimentConfig, ModelConfig
from sam2_3dmed_jax.data.clips import Clip
from sam2_3dmed_jax.data.prepared import PreparedDataset
from sam2_3dmed_jax.data.sample import sample_clips
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.targets import boundary_target
from sam2_3dmed_jax.pictures.overlay import plt, save_figure
from sam2_3dmed_jax.sam2.presets import preset_config

DEFAULT = ExperimentConfig(ModelConfig(image_size=512))
SHOWN = 8  # clips of a dataset
CLIPS = 24  # on a sheet, at most: its pixels are limited
COLOURS = ("#ffb000", "#56b4e9", "#f07fc0", "#00c896", "#f0e442", "#ff6a3d")  # after Okabe and Ito; told apart by all
POINT_OUTSIDE, POINT, BOX_CORNER = 0, 1, 2  # token labels, as SAM 2 numbers them
_HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="black")]  # legible on bone too
_GAP, _BETWEEN, _HEADER, _TITLE, _TOP, _BOTTOM = 0.06, 0.22, 0.32, 0.2, 0.5, 0.75  # inches


def preview_dataset(path: str | os.PathLike[str], dataset: PreparedDataset, config: ExperimentConfig = DEFAULT) -> None:
    """Write the contact sheet of clips of `SHOWN` cases, cut by the settings of an experiment.

    Raises:
        UserError: settings that do not fit the dataset, a damaged shard, or a file that cannot be written.
    """
    size = preset_config(config.model.preset, config.model.image_size).image_size
    clips, ids = sample_clips(dataset, config.data, size, SHOWN, config.training.seed)
    write_preview(path, clips, config.model, ids, f"{dataset.name}: training clips")


def write_preview(
    path: str | os.PathLike[str], clips: Sequence[Clip], model: ModelConfig, names: Sequence[str] = (), title: str = ""
) -> None:
    """Write the contact sheet (PNG) under a temporary name, then rename.

    Args:
        path: the picture.
        clips: without a batch axis; those past the first `CLIPS` are left out, which the sheet says.
        model: whether it has BD, and how wide its boundary targets are.
        names: of the clips, such as the ids of their cases.
        title: above the sheet.

    Raises:
        UserError: no clips, or a file that cannot be written; nothing is left behind.
    """
    if not clips:
        raise UserError(f"{path}: there are no clips to draw; give cases that hold a class to segment")
    save_figure(contact_sheet(clips, model, names, title), path)


def contact_sheet(clips: Sequence[Clip], model: ModelConfig, names: Sequence[str] = (), title: str = "") -> plt.Figure:
    """The sheet as a figure; its axes are, clip by clip, D whole slices and then D enlarged ones."""
    shown = clips[:CLIPS]
    steps = max(len(clip["slices"]) for clip in shown)
    tile = min(max(16 / steps, 2.2), 3.0)  # inches: few slices are shown larger
    block = _BETWEEN + _HEADER + _TITLE + 2 * tile + _GAP
    width, height = steps * (tile + _GAP) + _GAP, _TOP + len(shown) * block + _BOTTOM
    figure = plt.figure(figsize=(width, height))

    def place(column: int, top: float) -> plt.Axes:
        box = (_GAP + column * (tile + _GAP)) / width, 1 - (top + tile) / height, tile / width, tile / height
        return figure.add_axes(box, xticks=[], yticks=[], facecolor="black")

    for number, clip in enumerate(shown):
        top = _TOP + number * block + _BETWEEN
        name = f" ({names[number]})" if number < len(names) else ""
        header = f"clip {number + 1}{name}: {_walk(clip)}\n{_prompts(clip)}"
        figure.text(_GAP / width, 1 - top / height, header, va="top", fontsize=9)
        zoom = _window(clip)
        targets = _boundary(clip, model) if model.bd else None
        for d in range(len(clip["slices"])):
            whole = place(d, top + _HEADER + _TITLE)
            _draw(whole, clip, d)
            if clip["slice_valid"][d]:
                x0, y0, side = zoom
                whole.add_patch(Rectangle((x0, y0), side, side, fill=False, color="white", linewidth=0.6, alpha=0.6))
            whole.set_title(_where(clip, d), fontsize=8, pad=3)
            _say(whole, _states(clip, d))
        for d in range(len(clip["slices"])):
            _draw(place(d, top + _HEADER + _TITLE + tile + _GAP / 2), clip, d, zoom, targets)
    left_out = f"; the first {CLIPS} of {len(clips)} clips" if len(clips) > CLIPS else ""
    heading = f"{title or 'Training clips as the model sees them'}{left_out} (for research use only)"
    figure.text(0.5, 1 - 0.1 / height, heading, ha="center", va="top", fontsize=11)
    size = shown[0]["slices"].shape[-1]
    seen = (
        f"windowed, {size} x {size} px, augmented; mm from the lowest slice; the patient's right is left unless flipped"
    )
    figure.text(0.5, 1 - 0.34 / height, seen, ha="center", va="top", fontsize=8)
    objects = max(clip["masks"].shape[1] for clip in shown)
    figure.legend(handles=_legend(objects, model.bd), loc="lower center", ncols=6 if steps > 4 else 4, fontsize=8)
    return figure


def _draw(
    axis: plt.Axes,
    clip: Clip,
    d: int,
    zoom: tuple[float, float, float] | None = None,
    targets: np.ndarray | None = None,
) -> None:
    """A slice, its masks and prompts; with `zoom` (x, y, side) that part of it, with its boundary targets."""
    size = clip["slices"].shape[-1]
    x0, y0, side = zoom or (-0.5, -0.5, size)
    extent = -0.5, size - 0.5, size - 0.5, -0.5
    axis.imshow(clip["slices"][d], cmap="gray", vmin=0, vmax=1, extent=extent)
    if not clip["slice_valid"][d]:
        axis.add_patch(Rectangle((-0.5, -0.5), size, size, fill=False, hatch="//", edgecolor="0.35", linewidth=0))
        axis.text(0.5, 0.5, "padding", transform=axis.transAxes, color="white", ha="center", va="center", fontsize=9)
    coarse = axis.bbox.width / side > 2  # screen pixels a pixel: room for an outline inside the band of a boundary
    for k in np.flatnonzero(clip["object_valid"]).tolist():
        line = _colour(k)
        if targets is not None and targets[d, k].any():
            band = np.full((size, size, 4), to_rgba(line))
            band[..., 3] = (0.55 if coarse else 0.8) * targets[d, k]
            axis.imshow(band, extent=extent)
            line = "white" if coarse else ""
        if line:
            _outline(axis, clip["masks"][d, k] > 0, line, "-" if d >= clip["prompt_step"][k] else ":")
    for k in np.flatnonzero(clip["object_valid"]).tolist():
        if clip["prompt_step"][k] == d:
            _draw_prompt(axis, clip, k)
    axis.set(xlim=(x0, x0 + side), ylim=(y0 + side, y0))


def _outline(axis: plt.Axes, mask: np.ndarray, colour: str, style: str) -> None:
    """A line along the outer edges of a mask's pixels, closed at the border of the slice too."""
    if not mask.any():
        return
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # A contour cuts pixels' corners: parts of pixels cut less, where an object is so small that this would show.
    parts = int(np.clip(256 // max(part.shape), 1, 8))
    fine = np.pad(part.repeat(parts, 0).repeat(parts, 1), 1).astype(float)
    y, x = (
        first - 0.5 + (np.arange(length) - 0.5) / parts
        for first, length in zip((rows[0], columns[0]), fine.shape, strict=True)
    )
    axis.contour(x, y, fine, levels=[0.5], colors=[colour], linewidths=1.1, linestyles=[style])


def _draw_prompt(axis: plt.Axes, clip: Clip, k: int) -> None:
    """The points and the box of an object, in its colour with a dark rim."""
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


def _boundary(clip: Clip, model: ModelConfig) -> np.ndarray:
    """`[D, K, S, S]`: the targets that the loss counts, on valid slices from an object's prompt on."""
    targets = np.asarray(boundary_target(jnp.asarray(clip["masks"]), model.boundary.width))
    steps = np.arange(len(clip["slices"]))[:, None]
    counts = clip["slice_valid"][:, None] & clip["object_valid"] & (steps >= clip["prompt_step"])
    holds = clip["masks"].any((2, 3))  # a mask that fills its slice has no boundary, an absent one no target
    return targets * (counts & holds)[..., None, None]


def _window(clip: Clip) -> tuple[float, float, float]:
    """(x, y, side) of the square that holds all objects and prompts of a clip, with a margin."""
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


def _states(clip: Clip, d: int) -> list[tuple[int, str]]:
    """What each object is on a step."""
    states = []
    for k in np.flatnonzero(clip["object_valid"] & clip["slice_valid"][d]).tolist():
        holds, prompted = clip["masks"][d, k].any(), int(clip["prompt_step"][k])
        after = "present" if holds else "absent"
        word = "prompted" if d == prompted else "before its prompt" if d < prompted else after
        states.append((k, f"{k + 1} {word}"))
    return states


def _say(axis: plt.Axes, states: Sequence[tuple[int, str]]) -> None:
    """Objects' states in their colours, from the bottom of a tile."""
    for line, (k, words) in enumerate(reversed(states)):
        at = (4, 4 + 10 * line)
        text = axis.annotate(words, at, xycoords="axes points", color=_colour(k), fontsize=7.5, weight="bold")
        text.set_path_effects(_HALO)


def _where(clip: Clip, d: int) -> str:
    index = f"slice {clip['slice_index'][d]:g}"
    return f"{index}, {clip['position_mm'][d]:.1f} mm" if clip["slice_valid"][d] else f"{index}, outside"


def _walk(clip: Clip) -> str:
    """The direction and the stride; a clip of an absent object jumps after its first step."""
    strides = np.diff(clip["slice_index"])
    if not len(strides):
        return "one slice"
    towards = "walked up, towards the head" if strides[0] > 0 else "walked down, towards the feet"
    stride = abs(strides[-1])
    jump = f", after a jump of {abs(strides[0]):g}" if (strides != strides[0]).any() else ""
    return f"{towards}, {stride:g} slice{'s' * bool(stride != 1)} a step{jump}"


def _prompts(clip: Clip) -> str:
    """What prompts each object."""
    told = []
    for k, valid in enumerate(clip["object_valid"]):
        labels = clip["point_labels"][k]
        kinds = ["a box"] * bool((labels == BOX_CORNER).any())
        points = int(((labels == POINT) | (labels == POINT_OUTSIDE)).sum())
        kinds += [f"{points} points" if points > 1 else "a point"] * bool(points)
        how = f"prompted by {' and '.join(kinds) or 'nothing'} on step {clip['prompt_step'][k] + 1}"
        told.append(f"object {k + 1} {how if valid else 'is not in this clip'}")
    return "; ".join(told)


def _legend(objects: int, boundary: bool) -> list:
    """What lines and marks mean; colours are objects."""
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
