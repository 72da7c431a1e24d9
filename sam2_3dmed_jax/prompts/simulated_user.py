"""Simulated user of the protocol 'interactive': an initial prompt per object, then corrective clicks.

In each interaction, every object whose mask is not perfect yet gets one click, by the rule of `error_clicks`. All
objects of a case are corrected together, as in the SEGFM3D challenge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.error_clicks import ErrorClick, error_click
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, object_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts
from sam2_3dmed_jax.volume.label_classes import Target, written_values
from sam2_3dmed_jax.volume.label_layers import mask_of_values

Initial = Literal["box", "click", "none"]
ClickRule = Literal["mm", "voxels", "challenge"]
Refinement = Literal["tracked", "anew"]
_PROTOCOL_OF: dict[Initial, str] = {"box": "box-mid", "click": "one-click"}  # the protocol of each initial prompt
MAX_INTERACTIONS = 100


@dataclass(frozen=True)
class InteractionRules:
    """What the simulated user does, and how the model takes corrections."""

    initial: Initial = "box"  # prompt of each object, on the slice with its largest area, before the first click
    interactions: int = 5  # N, corrective clicks per object
    # Depth of a click: in mm; in voxels; or in voxels with the challenge's choice among equally deep voxels.
    click_rule: ClickRule = "mm"
    # tracked: a corrected slice is segmented again from memory, on top of its mask, as in SAM 2. anew: all prompts so
    # far are given to a new session, as `predict`, `Scan` and the server do.
    refinement: Refinement = "tracked"

    def __post_init__(self) -> None:
        for name in ("initial", "click_rule", "refinement"):
            value, known = getattr(self, name), RULES[name]
            if value not in known:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}: '{value}' does not exist; choose one of {', '.join(known)}")
        if not 1 <= self.interactions <= MAX_INTERACTIONS:
            raise UserError(
                f"--interactions: {self.interactions} is not a number of corrections; give 1 to {MAX_INTERACTIONS}"
            )


RULES: dict[str, tuple[str, ...]] = {
    "initial": get_args(Initial),
    "click_rule": get_args(ClickRule),
    "refinement": get_args(Refinement),
}


class Correction(NamedTuple):
    """A corrective click on an object."""

    click: ErrorClick
    prompt: VoxelPrompt  # the click as a prompt; its object id is the label value that the object writes


def initial_prompts(
    rules: InteractionRules,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    objects: Sequence[Target],
) -> ObjectPrompts:
    """Return the initial prompt of each of `objects` that is in a reference label map `[D, H, W]`."""
    if rules.initial == "none":
        return {}
    return object_prompts(_PROTOCOL_OF[rules.initial], reference, spacing, objects)


def corrections(
    labels: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    objects: Sequence[Target],
    click_rule: ClickRule = "mm",
) -> dict[Target, Correction]:
    """Return the click of each object of a reference that is not segmented perfectly.

    The mask of an object is where any of its label values is, in both label maps.

    Args:
        labels: integers `[D, H, W]`, the segmentation so far.
        reference: integers `[D, H, W]`.
        spacing: (dz, dy, dx) in mm.
        objects: label values of each object.
        click_rule: as in `InteractionRules`.
    """
    clicks = {}
    for target, value in zip(objects, written_values(objects), strict=True):
        wanted = mask_of_values(reference, target)
        if not wanted.any():
            continue
        click = error_click(
            mask_of_values(labels, target),
            wanted,
            spacing if click_rule == "mm" else None,
            ties="challenge" if click_rule == "challenge" else "first",
        )
        if click:
            z, y, x = click.voxel
            clicks[target] = Correction(click, VoxelPrompt(value, z, ((float(x), float(y)),), (int(click.inside),)))
    return clicks


def with_prompts(prompts: ObjectPrompts, added: ObjectPrompts) -> ObjectPrompts:
    """Return prompts with further ones, one per object and slice; a click replaces a mask there, as in a session."""
    merged = {}
    for target in dict.fromkeys((*prompts, *added)):
        later = added.get(target, [])
        slices = {prompt.slice for prompt in later}
        kept = [prompt for prompt in prompts.get(target, ()) if prompt.mask is None or prompt.slice not in slices]
        merged[target] = merge_prompts([*kept, *later])
    return merged
