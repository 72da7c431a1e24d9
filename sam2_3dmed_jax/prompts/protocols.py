"""Evaluation protocols: prompts simulated from reference masks.

A click is at the in-plane maximum of the distance transform in mm. Prompts are all that the predictor gets from the
reference. The exception is `oracle-clip`, our interpretation of the paper's protocol: it also limits the segmentation
to the extent of the object in z.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.simulation import box_of, centre_point, largest_slice
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26
from sam2_3dmed_jax.volume.label_classes import Target, written_values

PROTOCOLS = {
    "one-click": "one positive click per object, on the slice with its largest area",
    "box-mid": "one box per object, on the slice with its largest area",
    "one-click-per-component": "one positive click on each connected component, on the slice with its largest area",
    "oracle-clip": (
        "oracle: the extent of the reference in z is cut into clips of D slices; each clip is segmented alone from one "
        "click on its slice with the largest area, and nothing is predicted beyond the extent"
    ),
}
# What the prompts of each protocol reveal about an object of the reference.
INFORMATION = {
    "one-click": "one voxel deep inside the object, on the slice where it is largest",
    "box-mid": "the extent of the object on the slice where it is largest",
    "one-click-per-component": "the number of its components, and one voxel deep inside each, where it is largest",
    "oracle-clip": "the first and last slice of the object, and one voxel deep inside it in each clip of D slices",
    "nearest-component": "one voxel deep inside the object, which chose the component that is scored",
    "interactive": "its initial prompt, if any, and the centre of the largest error of each segmentation but the last",
}
# Suffix of a protocol whose prompts are simulated from the predictions of an automatic method, not from references.
FROM_PREDICTIONS = "-from-predictions"
NEAREST_COMPONENT = "nearest-component"
INTERACTIVE = "interactive"  # corrective clicks after an initial prompt: `simulated_user`
# Descriptions of the values of the column "protocol".
PROTOCOL_DESCRIPTIONS = {
    **PROTOCOLS,
    **{
        f"{name}{FROM_PREDICTIONS}": f"{text}; in the prediction of an automatic method, without the reference"
        for name, text in PROTOCOLS.items()
        if name != "oracle-clip"
    },
    NEAREST_COMPONENT: (
        "the prediction of an automatic method, reduced per object to the component nearest to one click in the "
        "reference"
    ),
    INTERACTIVE: (
        "an initial prompt per object (a box, a click or none), then corrective clicks, each at the centre of the "
        "largest error of the segmentation so far; scores are those after the last one"
    ),
}

# Prompts by object. The object id of the prompts is the label value that the object writes.
ObjectPrompts = dict[Target, list[VoxelPrompt]]


def check_protocol(protocol: str) -> None:
    """Check that a protocol exists.

    Raises:
        UserError: it does not.
    """
    if protocol == INTERACTIVE:
        raise UserError("--protocol: 'interactive' needs a reference after each click; it is for `evaluate` alone")
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol: '{protocol}' does not exist; choose one of {', '.join(PROTOCOLS)}")


def protocol_prompts(
    protocol: str, reference: np.ndarray, spacing: tuple[float, float, float], object_id: int, clip_slices: int = 6
) -> list[VoxelPrompt]:
    """Return the prompts of one object from its reference mask.

    Args:
        protocol: one of `PROTOCOLS`.
        reference: bool `[D, H, W]`, not empty.
        spacing: (dz, dy, dx) in mm.
        object_id: object id of the prompts.
        clip_slices: D of 'oracle-clip'.

    Raises:
        UserError: the protocol does not exist, or the reference is empty.
    """
    check_protocol(protocol)
    if protocol == "box-mid":
        index = largest_slice(reference)
        return [VoxelPrompt(object_id, index, box=box_of(reference[index]))]
    if protocol == "one-click":
        parts = [(0, reference)]
    elif protocol == "one-click-per-component":
        components, count = ndimage.label(reference, NEIGHBOURS_26)
        boxes = ndimage.find_objects(components)
        parts = [(box[0].start, components[box[0]] == n) for n, box in zip(range(1, count + 1), boxes, strict=True)]
    else:
        parts = [(start, reference[start:stop]) for start, stop in clip_ranges(reference, clip_slices)]
        parts = [(start, part) for start, part in parts if part.any()]
    prompts = []
    for start, part in parts:
        index = largest_slice(part)
        prompts.append(VoxelPrompt(object_id, start + index, (centre_point(part[index], spacing[1:]),), (1,)))
    return prompts


def clip_ranges(reference: np.ndarray, clip_slices: int) -> list[tuple[int, int]]:
    """Return (first, last + 1) slice of each clip of the extent of a reference; the last clip may be shorter."""
    present = np.flatnonzero(reference.any((1, 2)))
    stop = int(present[-1]) + 1
    return [(start, min(start + clip_slices, stop)) for start in range(int(present[0]), stop, clip_slices)]


def object_prompts(
    protocol: str,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    objects: Sequence[Target],
    clip_slices: int = 6,
) -> ObjectPrompts:
    """Return the prompts of each of `objects` that is in a reference label map `[D, H, W]`; see `protocol_prompts`."""
    prompts = {}
    for target, value in zip(objects, written_values(objects), strict=True):
        mask = np.isin(reference, target)
        if mask.any():
            prompts[target] = protocol_prompts(protocol, mask, spacing, value, clip_slices)
    return prompts


def relevant_prompts(values: Sequence[int], prompts: ObjectPrompts) -> list[VoxelPrompt]:
    """Return the prompts that affect where `values` are written in a label map.

    These are the prompts of the objects that write the values, and of objects nested in them.
    """
    writers = [target for target, own in prompts.items() if own[0].object_id in values]
    nested = {target for target in prompts for writer in writers if set(target) <= set(writer)}
    return [prompt for target in prompts if target in nested for prompt in prompts[target]]
