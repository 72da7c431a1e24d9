"""How a reference becomes prompts: the evaluation protocols. Nothing else of the reference reaches the predictor.

A click lies at the in-plane maximum of the distance transform in mm. `oracle-clip` is our guess at the paper's
protocol: it also tells where the object begins and ends, and is an oracle for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.simulation import box_of, centre_point, largest_slice
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26
from sam2_3dmed_jax.volume.label_classes import Target, painted_values

PROTOCOLS = {
    "one-click": "one positive click an object, on the slice with its largest area",
    "box-mid": "one box an object, on the slice with its largest area",
    "one-click-per-component": "one positive click on each connected component, on the slice with its largest area",
    "oracle-clip": (
        "oracle: the reference's extent in z is cut into clips of D slices, each is segmented alone from one click on "
        "its slice with the largest area, and nothing is predicted beyond the extent"
    ),
}
FROM_PREDICTIONS = "-from-predictions"  # behind a protocol: prompts are drawn from those instead of the reference
NEAREST_COMPONENT = "nearest-component"
# What stands in the column "protocol", explained.
EXPLAINED = {
    **PROTOCOLS,
    **{
        f"{name}{FROM_PREDICTIONS}": f"{text}; of an automatic method's prediction, no reference being used"
        for name, text in PROTOCOLS.items()
        if name != "oracle-clip"
    },
    NEAREST_COMPONENT: (
        "an automatic method's prediction, reduced to the component nearest to one click in the reference, an object"
    ),
}


def check_protocol(protocol: str) -> None:
    """Raise `UserError` for a protocol that does not exist."""
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol: there is no '{protocol}'; choose one of {', '.join(PROTOCOLS)}")


def prompts_of(
    protocol: str, reference: np.ndarray, spacing: tuple[float, float, float], object_id: int, clip_slices: int = 6
) -> list[VoxelPrompt]:
    """The prompts of one object from its reference mask bool `[D, H, W]`.

    Args:
        protocol: one of `PROTOCOLS`.
        reference: not empty.
        spacing: (dz, dy, dx) in mm.
        object_id: of the prompts.
        clip_slices: D of 'oracle-clip'.

    Raises:
        UserError: an unknown protocol, or an empty reference.
    """
    check_protocol(protocol)
    if protocol == "box-mid":
        index = largest_slice(reference)
        return [VoxelPrompt(object_id, index, box=box_of(reference[index]))]
    if protocol == "one-click":
        parts = [(0, reference)]
    elif protocol == "one-click-per-component":
        components, number = ndimage.label(reference, NEIGHBOURS_26)
        found = ndimage.find_objects(components)
        parts = [(box[0].start, components[box[0]] == n) for n, box in zip(range(1, number + 1), found, strict=True)]
    else:
        parts = [(start, reference[start:stop]) for start, stop in clips_of(reference, clip_slices)]
        parts = [(start, part) for start, part in parts if part.any()]
    prompts = []
    for start, part in parts:
        index = largest_slice(part)
        prompts.append(VoxelPrompt(object_id, start + index, (centre_point(part[index], spacing[1:]),), (1,)))
    return prompts


def clips_of(reference: np.ndarray, clip_slices: int) -> list[tuple[int, int]]:
    """First and past-the-last slice of each clip of the reference's extent; the last clip may be shorter."""
    present = np.flatnonzero(reference.any((1, 2)))
    stop = int(present[-1]) + 1
    return [(start, min(start + clip_slices, stop)) for start in range(int(present[0]), stop, clip_slices)]


ObjectPrompts = dict[Target, list[VoxelPrompt]]  # of each object; the prompts' object id is the label that it writes


def prompts_of_objects(
    protocol: str,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    objects: Sequence[Target],
    clip_slices: int = 6,
) -> ObjectPrompts:
    """The prompts of each object that a reference label map `[D, H, W]` holds; see `protocol.prompts_of`."""
    prompts = {}
    for target, value in zip(objects, painted_values(objects), strict=True):
        mask = np.isin(reference, target)
        if mask.any():
            prompts[target] = prompts_of(protocol, mask, spacing, value, clip_slices)
    return prompts


def deciding(values: Sequence[int], prompts: ObjectPrompts) -> list[VoxelPrompt]:
    """The prompts that decide where label values go: of the objects that write them, and of those nested in these."""
    writers = [target for target, own in prompts.items() if own[0].object_id in values]
    nested = {target for target in prompts for writer in writers if set(target) <= set(writer)}
    return [prompt for target in prompts if target in nested for prompt in prompts[target]]
