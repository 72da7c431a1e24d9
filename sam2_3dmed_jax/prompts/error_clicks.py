"""Corrective click of a simulated user: the centre of the largest error of a segmentation.

Source: the loop of the CVPR 2025 SEGFM3D challenge (`CVPR25_iter_eval.py`, JunMa11/CVPR-MedSegFMCompetition). Training,
`evaluate --protocol interactive` and `experiments.segfm3d` use this rule.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26

Ties = Literal["first", "challenge"]
TIES: tuple[Ties, ...] = get_args(Ties)

_CHALLENGE_SEED = 42  # that the challenge's script sets before it draws each click


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
    clicked inside of it, as in the challenge. Left out: the script halves the resolution of the distances of components
    whose box has more than 60 million voxels.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        spacing: (dz, dy, dx) in mm, for distances in mm; None measures in voxels, as the challenge does.
        ties: which of several deepest voxels is clicked: "first" in C order, or "challenge", the one that the
            challenge's script draws with NumPy's legacy generator, seeded with 42 for each click.

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
    # A border of one voxel suffices: the nearest voxel outside of a component is at most one voxel outside of its box.
    component = np.pad(components[box] == number, 1)
    depth = ndimage.distance_transform_edt(component, sampling=spacing)[1:-1, 1:-1, 1:-1]
    deepest = np.flatnonzero(depth == depth.max())
    chosen = deepest[0 if ties == "first" else np.random.RandomState(_CHALLENGE_SEED).choice(len(deepest))]
    offsets = np.unravel_index(chosen, depth.shape)
    z, y, x = (int(i) + b.start + a.start for i, b, a in zip(offsets, box, around, strict=True))
    return ErrorClick((z, y, x), bool(reference[z, y, x]))


def _extent(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the smallest box around a mask, bool `[D, H, W]`, or None if it is empty."""
    planes = np.flatnonzero(mask.any((1, 2)))
    if not planes.size:
        return None
    shadow: np.ndarray = np.logical_or.reduce(mask[planes[0] : planes[-1] + 1])
    sides = (planes, np.flatnonzero(shadow.any(1)), np.flatnonzero(shadow.any(0)))
    d, h, w = (slice(int(indices[0]), int(indices[-1]) + 1) for indices in sides)
    return d, h, w
