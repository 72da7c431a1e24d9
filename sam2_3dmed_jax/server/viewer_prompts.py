"""Prompts of viewers as changes of a scan.

Viewers draw points, strokes and outlines in any plane. SAM 2 has no counterpart of outlines that exclude, nor of those
drawn in planes that are not slices: they become clicks sampled from their area.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sam2_3dmed_jax.scan.scan import Scan

OBJECT = 1  # viewers segment one object at a time, and keep the finished ones themselves
SteppingChange = Callable[[Scan], int]  # a change, which returns the number of `undo` that take it back


def click(scan: Scan, voxel: Sequence[int], include: bool) -> int:
    """Add a click, and return the number of `undo` that take it back.

    Raises:
        UserError: it is outside of the image.
    """
    scan.click(voxel, include, object=OBJECT, corrects_masks=True)
    return 1


def scribble(scan: Scan, area: np.ndarray, include: bool) -> int:
    """Add strokes, bool on the grid of the image, and return the number of `undo` that take them back.

    Raises:
        UserError: they are empty.
    """
    if include:
        scan.scribble(area, object=OBJECT, corrects_masks=True)
    else:
        scan.scribble(None, area, object=OBJECT, corrects_masks=True)
    return 1


def lasso(scan: Scan, area: np.ndarray, include: bool) -> int:
    """Add the inside of an outline as the mask of its slices; arguments, errors and result as of `scribble`."""
    extents = [int(area.any(tuple({0, 1, 2} - {axis})).sum()) for axis in range(3)]
    depth = extents.pop(scan.slice_axis)
    if not include or (depth > 1 and 1 in extents):
        return scribble(scan, area, include)
    scan.draw(area, object=OBJECT)
    return 1


def mask_of(scan: Scan) -> np.ndarray:
    """Return the mask of the viewer's object, bool on the grid of the image; empty without prompts."""
    return scan.mask(OBJECT) if scan.prompts else np.zeros(scan.shape, bool)
