"""Label maps of an automatic method, reduced to the component of each object that is nearest to a click.

This is a bridge between automatic and prompted methods: it shows the value of an automatic method that knows where the
object is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.metrics.components import components_of
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_classes import Target, written_values


def nearest_components(labels: np.ndarray, grid: Grid, objects: Sequence[Target], clicks: ObjectPrompts) -> np.ndarray:
    """Return the label map with one component (26 neighbours) per object: the one with the voxel nearest to its click.

    The other components of the object become background, or the object that it is nested in: the other components of a
    tumour become the organ around them. An object without a click, which the reference lacks, is removed.

    Args:
        labels: integers `[D, H, W]`.
        grid: of the label map; distances are in mm.
        objects: the label values of each object, an outer object before those nested in it.
        clicks: of each object that has one, made by `protocols.protocol_prompts` for 'one-click'.
    """
    result = labels.copy()
    written = written_values(objects)
    for place, target in enumerate(objects):
        mask = np.isin(result, target)
        around = [value for value, outer in zip(written[:place], objects, strict=False) if set(target) < set(outer)]
        keep = np.zeros_like(mask)
        if target in clicks and mask.any():
            (prompt,) = clicks[target]
            ((x, y),) = prompt.points
            components = components_of(mask)
            keep = components.mask_of([components.nearest((prompt.slice, y, x), grid.canonical_affine)], mask.shape)
        result[mask & ~keep] = around[-1] if around else 0
    return result
