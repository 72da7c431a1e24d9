"""Removal of all components of a mask but the largest one, or but those that were clicked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.metrics.components import components_of
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.label_layers import values_in

KeepRule = Literal["clicked", "largest"]
KEEP_RULES: tuple[KeepRule, ...] = get_args(KeepRule)

MaskFilter = Callable[[int, np.ndarray], np.ndarray]  # from an object id and its mask, bool [D, H, W], to the kept part


def mask_filter(rule: KeepRule, prompts: Sequence[VoxelPrompt], affine: np.ndarray) -> MaskFilter:
    """Return the function that keeps the largest component of a mask, or one component per click inside of the object.

    A click that is outside of the mask keeps the component that is nearest to it in mm.

    Args:
        rule: the components to keep.
        prompts: of all objects.
        affine: canonical affine of the volume.

    Raises:
        UserError: the rule is "clicked", and an object has no click inside of it.
    """
    clicks: dict[int, list[tuple[float, float, float]]] = {prompt.object_id: [] for prompt in prompts}
    for prompt in prompts:
        points = zip(prompt.points, prompt.labels, strict=True)
        clicks[prompt.object_id] += [(float(prompt.slice), y, x) for (x, y), label in points if label]
    for object_id in (object_id for object_id, places in clicks.items() if rule == "clicked" and not places):
        raise UserError(
            f"--keep-component clicked: object {object_id} has no click inside of it; add one, or use 'largest'"
        )

    def keep(object_id: int, mask: np.ndarray) -> np.ndarray:
        components = components_of(mask)
        if len(components.sizes) < 2:
            return mask
        if rule == "largest":
            return components.mask_of([components.largest], mask.shape)
        numbers = [components.nearest(place, affine) for place in clicks[object_id]]
        return components.mask_of(numbers, mask.shape)

    return keep


def filter_labels(labels: np.ndarray, keep: MaskFilter) -> None:
    """Set what a filter removes from each object of a label map `[D, H, W]` to 0, in place."""
    for object_id in values_in(labels):
        mask = labels == object_id
        labels[mask & ~keep(object_id, mask)] = 0
