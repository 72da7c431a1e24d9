"""How a reference becomes prompts: the evaluation protocols. Nothing else of the reference reaches the predictor.

`one-click`: one positive click a class, on the slice with its largest area, at the in-plane maximum of the distance
transform in mm. `box-mid`: the reference's box on that slice.
"""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.prompts import box_of, centre_point, largest_slice

PROTOCOLS = ("one-click", "box-mid")


def check_protocol(protocol: str) -> None:
    """Raise `UserError` for a protocol that does not exist."""
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol: there is no '{protocol}'; choose one of {', '.join(PROTOCOLS)}")


def prompt_of(protocol: str, reference: np.ndarray, spacing: tuple[float, float, float], object_id: int) -> VoxelPrompt:
    """The prompt of one class from its reference mask bool `[D, H, W]`; spacing (dz, dy, dx) in mm.

    Raises:
        UserError: an unknown protocol, or an empty reference.
    """
    check_protocol(protocol)
    index = largest_slice(reference)
    if protocol == "one-click":
        return VoxelPrompt(object_id, index, (centre_point(reference[index], spacing[1:]),), (1,))
    return VoxelPrompt(object_id, index, box=box_of(reference[index]))
