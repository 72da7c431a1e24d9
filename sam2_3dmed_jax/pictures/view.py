"""Choice of what a picture shows: slices through an object, and the part of the volume around it and its prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.metrics.mask_box import extent
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt

SMALLEST_MM, SMALLEST_VOXELS = 30.0, 24  # sides of the smallest part that is enlarged; the larger one counts
LARGEST = 0.6  # largest part that is enlarged, as a fraction of the volume along each axis
MARGIN = 1.5  # size of the enlarged part relative to the object

Place = tuple[float, float, float]  # (d, h, w)
Interval = tuple[int, int]  # first and last voxel


def prompt_places(prompt: VoxelPrompt) -> list[Place]:
    """Return the places of a prompt: its points, those inside the object first, and the centre of its box or mask."""
    order = np.argsort([-label for label in prompt.labels], kind="stable")
    places = [(float(prompt.slice), prompt.points[i][1], prompt.points[i][0]) for i in order]
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        places.append((float(prompt.slice), (y0 + y1) / 2, (x0 + x1) / 2))
    if prompt.mask is not None and prompt.mask.any():
        h, w = centre_pixel(prompt.mask)
        places.append((float(prompt.slice), float(h), float(w)))
    return places


def centre_of_prompts(prompts: Sequence[VoxelPrompt], shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Return the voxel of the middle prompt, of those with a click inside if there are any; None without prompts."""
    inside = [prompt for prompt in prompts if 1 in prompt.labels] or list(prompts)
    inside.sort(key=lambda prompt: prompt.slice)
    places = prompt_places(inside[len(inside) // 2]) if inside else []
    if not places:
        return None
    d, h, w = (min(max(round(x), 0), n - 1) for x, n in zip(places[0], shape, strict=True))
    return d, h, w


def centre_pixel(mask: np.ndarray) -> tuple[int, int]:
    """Return the pixel of a mask `[H, W]` that is nearest to its centre of mass."""
    pixels = np.argwhere(mask)
    h, w = pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()].tolist()
    return h, w


def centre_voxel(mask: np.ndarray) -> tuple[int, int, int]:
    """Return a voxel `(d, h, w)` of a mask `[D, H, W]` near its centre of mass, on the nearest axial slice."""
    area = np.count_nonzero(mask, axis=(1, 2))
    slices = np.flatnonzero(area)
    d = int(slices[np.abs(slices - np.average(slices, weights=area[slices])).argmin()])
    return d, *centre_pixel(mask[d])


def slices_through(present: np.ndarray, prompts: Sequence[VoxelPrompt], fewest: int, most: int) -> list[int]:
    """Return evenly spaced slices over the extent of an object and its prompts, including the prompted ones.

    Args:
        present: bool `[D]`, slices with the object.
        prompts: of the object.
        fewest: minimum number of slices, where the volume has so many; the extent is continued at both ends.
        most: maximum number of slices.
    """
    prompted = sorted({prompt.slice for prompt in prompts})
    inside = [*np.flatnonzero(present).tolist(), *prompted] or [len(present) // 2]
    count = max(inside) - min(inside) + 1
    shown = max(count, min(fewest, len(present)))
    low = min(max(min(inside) - (shown - count) // 2, 0), len(present) - shown)
    spaced = np.unique(np.linspace(low, low + shown - 1, most).round().astype(int)).tolist()
    kept = prompted if len(prompted) <= most else prompted[:: -(-len(prompted) // most)]
    free = [index for index in spaced if index not in kept]
    while len(kept) + len(free) > most:  # the slice nearest to a prompted one is left out
        free.remove(min(free, key=lambda index: min(abs(index - other) for other in kept)))
    return sorted([*kept, *free])


def zoom_box(
    mask: np.ndarray, prompts: Sequence[VoxelPrompt], spacing: Sequence[float], axes: Sequence[int]
) -> tuple[Interval, Interval, Interval] | None:
    """Return the part of a volume around an object and its prompts, of the same size in mm along some axes.

    Args:
        mask: bool `[D, H, W]`; may be empty.
        prompts: of the object.
        spacing: (dz, dy, dx) in mm.
        axes: canonical axes of the picture; the part is the whole volume along the others.

    Returns:
        The first and last voxel along each axis. If the part would be larger than `LARGEST` of the volume along an
        axis, it is around the prompts: cut, or without the mask if that does not contain the prompt. None without
        object and prompts.
    """
    found = extent(mask)
    prompted = centre_of_prompts(prompts, mask.shape)
    if prompted is None and found is None:
        return None
    focus = prompted or centre_voxel(mask)
    smallest = max(SMALLEST_MM, SMALLEST_VOXELS * max(spacing[axis] for axis in axes if axis))
    most = {
        axis: max(round(LARGEST * n), min(n, round(smallest / spacing[axis])), 1) for axis, n in enumerate(mask.shape)
    }
    low, high = _bounds(found, prompts)
    side = _side(low, high, spacing, axes, smallest)
    if not mask[focus] and any(side / spacing[axis] > most[axis] for axis in axes):
        low, high = _bounds(None, prompts)
        side = _side(low, high, spacing, axes, smallest)
    box: list[Interval] = [(0, n - 1) for n in mask.shape]
    for axis in axes:
        size = max(round(side / spacing[axis]), 1)
        centre = (low[axis] + high[axis]) / 2 if size <= most[axis] else focus[axis]
        size = min(size, most[axis])
        first = min(max(round(centre - (size - 1) / 2), 0), mask.shape[axis] - size)
        box[axis] = first, first + size - 1
    return box[0], box[1], box[2]


def _side(low: np.ndarray, high: np.ndarray, spacing: Sequence[float], axes: Sequence[int], smallest: float) -> float:
    """Return the side in mm of the part around two corners."""
    return max(smallest, *(MARGIN * float(high[axis] - low[axis] + 1) * spacing[axis] for axis in axes))


def _bounds(found: tuple[list[int], list[int]] | None, prompts: Sequence[VoxelPrompt]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest corner around the extent of a mask and all prompts."""
    corners = [np.asarray(corner, float) for corner in found or ()]
    for prompt in prompts:
        corners += [np.asarray(place) for place in prompt_places(prompt)]
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            corners += [np.array([prompt.slice, y0, x0]), np.array([prompt.slice, y1, x1])]
    return np.min(corners, axis=0), np.max(corners, axis=0)
