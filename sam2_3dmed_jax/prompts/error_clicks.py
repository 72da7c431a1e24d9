"""Corrective click of a simulated user: the centre of the largest error of a segmentation.

Source: the loop of the CVPR 2025 SEGFM3D challenge (`CVPR25_iter_eval.py`, JunMa11/CVPR-MedSegFMCompetition). Training,
`evaluate --protocol interactive` and `experiments.segfm3d` use this rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26

Ties = Literal["first", "challenge"]
TIES: tuple[Ties, ...] = get_args(Ties)

_CHALLENGE_SEED = 42  # that the challenge's script sets before it draws each click
_CHALLENGE_FULL_RESOLUTION = 60_000_000  # voxels of the largest padded box whose distances the script computes in full


class ErrorClick(NamedTuple):
    """A click at a voxel of an error."""

    voxel: tuple[int, int, int]  # (z, y, x), index in the volume
    inside: (
        bool  # whether the voxel belongs to the object: a missed voxel is a positive click, an excess one a negative
    )


def error_click(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float] | None = None,
    *,
    ties: Ties = "first",
) -> ErrorClick | None:
    """Return the click at the voxel that is deepest inside the largest component of the error.

    The error is `prediction != reference`; missed and excess voxels that touch form one component of 26 neighbours, as
    in the challenge, and the clicked voxel decides whether the click is positive. The largest component is the one with
    the most voxels, the first in C order of several. Its depth is the Euclidean distance to the nearest voxel that is
    not in the component; everything beyond the volume counts as such, so a component at the border of the volume is
    clicked inside of it, as in the challenge.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        spacing: (dz, dy, dx) in mm, for distances in mm; None measures in voxels, as the challenge does.
        ties: which of several deepest voxels is clicked: "first" in C order, or "challenge", the one that the
            challenge's script draws with NumPy's legacy generator, seeded with 42 for each click; large components are
            then measured as coarsely as the script does, which makes more voxels equally deep.

    Returns:
        The click, or None if both masks are equal.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} must have the same shape")
    error = np.not_equal(prediction, reference)
    # Components are labelled in the smallest box around the error, which a usable segmentation keeps small.
    if (around := _extent(error)) is None:
        return None
    components, _ = ndimage.label(error[around], NEIGHBOURS_26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    number = int(sizes.argmax())  # SciPy numbers components in C order of their first voxels.
    box = ndimage.find_objects(components, max_label=number)[number - 1]
    component = components[box] == number
    padding = _challenge_padding(component.shape)
    padded_voxels = math.prod(n + 2 * p for n, p in zip(component.shape, padding, strict=True))
    if ties == "challenge" and padded_voxels > _CHALLENGE_FULL_RESOLUTION:
        depth = _depth_at_half_resolution(component, padding)
    else:
        # A border of one voxel suffices: the nearest voxel outside of a component is at most one outside of its box.
        depth = ndimage.distance_transform_edt(np.pad(component, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    deepest = np.flatnonzero(depth == depth.max())
    chosen = deepest[0 if ties == "first" else np.random.RandomState(_CHALLENGE_SEED).choice(len(deepest))]
    offsets = np.unravel_index(chosen, depth.shape)
    z, y, x = (int(i) + b.start + a.start for i, b, a in zip(offsets, box, around, strict=True))
    return ErrorClick((z, y, x), bool(reference[z, y, x]))


def _challenge_padding(shape: Sequence[int]) -> list[int]:
    """Return the border that the challenge's script adds on each side of a component's box (D, H, W), in voxels."""
    return [max(int(n * 0.25), 1) for n in shape]


def _depth_at_half_resolution(component: np.ndarray, padding: Sequence[int]) -> np.ndarray:
    """Return the distances to the outside of a component in cells of 2 x 2 x 2 voxels, as the script computes them.

    A cell belongs to the component if one of its voxels does. The padding decides where cells begin.

    Args:
        component: bool `[D, H, W]`.
        padding: voxels on each side, along each axis.

    Returns:
        `[D, H, W]` float64, in cells; 0 outside of the component.
    """
    borders = [(p, p + n % 2) for n, p in zip(component.shape, padding, strict=True)]
    padded = np.pad(component, borders)
    d, h, w = (n // 2 for n in padded.shape)
    cells = ndimage.distance_transform_edt(padded.reshape(d, 2, h, 2, w, 2).max(axis=(1, 3, 5)))
    at = np.ix_(*((p + np.arange(n)) // 2 for n, p in zip(component.shape, padding, strict=True)))
    depth: np.ndarray = cells[at] * component
    return depth


def _extent(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the smallest box around a mask, bool `[D, H, W]`, or None if it is empty."""
    planes = np.flatnonzero(mask.any((1, 2)))
    if not planes.size:
        return None
    shadow: np.ndarray = np.logical_or.reduce(mask[planes[0] : planes[-1] + 1])
    sides = (planes, np.flatnonzero(shadow.any(1)), np.flatnonzero(shadow.any(0)))
    d, h, w = (slice(int(indices[0]), int(indices[-1]) + 1) for indices in sides)
    return d, h, w
