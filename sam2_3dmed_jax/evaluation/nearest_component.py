"""An automatic method's label map reduced to what a click would have chosen: of each object, the component nearest it.

It bridges the two blocks of a table: what an automatic method would be worth if it were told where the object is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.prompts.protocols import ObjectPrompts
from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26, Grid
from sam2_3dmed_jax.volume.label_classes import Target, painted_values


def nearest_components(labels: np.ndarray, grid: Grid, objects: Sequence[Target], clicks: ObjectPrompts) -> np.ndarray:
    """The label map with one component (26 neighbours) an object, the one with the voxel nearest to its click in mm.

    What else belongs to the object becomes background, or what the object is nested in: a tumour's other components
    become the organ around them. An object without a click, which the reference lacks, is taken away.

    Args:
        labels: integers `[D, H, W]`.
        grid: of the label map.
        objects: the label values of each, those around others first.
        clicks: of each object that has one, as `protocol.prompts_of` makes them for 'one-click'.
    """
    found = labels.copy()
    painted = painted_values(objects)
    for at, target in enumerate(objects):
        mask = np.isin(found, target)
        around = [value for value, outer in zip(painted[:at], objects, strict=False) if set(target) < set(outer)]
        keep = np.zeros_like(mask)
        if target in clicks and mask.any():
            (prompt,) = clicks[target]
            ((x, y),) = prompt.points
            components, _ = ndimage.label(mask, NEIGHBOURS_26)
            voxels = np.argwhere(mask)
            steps = (voxels - (prompt.slice, y, x)) @ grid.canonical_affine[:3, :3].T
            keep = components == components[tuple(voxels[np.square(steps).sum(1).argmin()])]
        found[mask & ~keep] = around[-1] if around else 0
    return found
