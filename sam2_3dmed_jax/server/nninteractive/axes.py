"""Axes of images that arrive without an affine.

Viewers send voxels in an order of their own, (z, y, x) from 3D Slicer and napari, with the spacing of these axes. The
model needs to know which planes are slices. It cannot be known which end of an axis is superior, anterior or left, nor
whether a volume of equal extents and spacings is axial. Masks are returned in the order of the voxels that were sent: a
wrong guess displaces nothing, but masks may be worse.

napari has a negative spacing for an axis that it flips on the display. Images of napari-nifti have three: their axes
ascend to superior, anterior and right, and are flipped to the usual display, with anterior at the top and right at the
left. So a negative spacing shows the direction of rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.errors import UserError

ANISOTROPY = 1.2  # ratio of spacings from which on the coarse axis is the one that slices are stacked along


def guessed_slice_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """Return the axis that slices are stacked along, as far as it can be known.

    It is the axis of the coarsest spacing, if the two others are finer; otherwise the axis whose extent differs from
    two equal ones, since the planes of scanners are squares; otherwise the first.
    """
    sizes = np.abs(spacing)
    coarse = int(np.argmax(sizes))
    if sizes[coarse] >= ANISOTROPY * max(sizes[axis] for axis in range(3) if axis != coarse):
        return coarse
    for axis in range(3):
        first, second = (shape[other] for other in range(3) if other != axis)
        if first == second != shape[axis]:
            return axis
    return 0


def guessed_affine(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Return an affine `[4, 4]`, voxel index to RAS millimetres, under which slices are axial.

    Along the slice axis, indices ascend to superior. Of the two other axes, the one next to the slice axis are the rows
    of a slice, from anterior to posterior, and the other one its columns, from right to left: (z, y, x) and (x, y, z).
    Rows and columns with a negative spacing are in the other direction.
    """
    slices = guessed_slice_axis(shape, spacing)
    rows, columns = {0: (1, 2), 1: (0, 2), 2: (1, 0)}[slices]
    affine = np.zeros((4, 4))
    affine[2, slices], affine[1, rows], affine[0, columns] = abs(spacing[slices]), -spacing[rows], -spacing[columns]
    affine[3, 3] = 1.0
    return affine


def parse_spacing(properties: object) -> tuple[float, float, float]:
    """Return the spacing in a viewer's `image_properties`, in the order of the voxels; without one, 1 mm.

    Raises:
        UserError: it is not three numbers other than 0.
    """
    spacing = properties.get("spacing") if isinstance(properties, dict) else None
    if spacing is None:
        return 1.0, 1.0, 1.0
    try:
        first, second, third = (float(value) for value in spacing)
    except (TypeError, ValueError, OverflowError):
        first = second = third = 0.0
    if not all(0 < abs(value) < 1e6 for value in (first, second, third)):
        raise UserError("image_properties: the spacing is not three numbers in mm other than 0")
    return first, second, third
