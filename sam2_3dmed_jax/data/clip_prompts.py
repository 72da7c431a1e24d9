"""Simulated prompts of a training clip: the prompted slices of each object, and the slices that clicks will correct.

The first and further prompts are points, boxes or masks from the reference. Corrective clicks depend on the prediction,
so that the compiled step places them (`training.corrections`); here, only their slices, numbers and random draws are
chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import numpy as np

from sam2_3dmed_jax.config import DataConfig, PromptConfig
from sam2_3dmed_jax.data.masks import SliceMasks
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts import simulation
from sam2_3dmed_jax.volume.label_classes import Target

PROMPT_TOKENS = 4  # T: two box corners or a point, "not a point", and padding to a power of two
MAX_CLICKS = 12  # with which the tokens of a slice fit into 16
NO_STEP = -1  # of an object without a further prompted or corrected slice
AT_CENTRE = -1.0  # the draw of a click at the deepest point of the error


class ClipPrompts(TypedDict):
    """The prompts of a clip's objects.

    Fields after `multimask` exist only if the configuration uses them. Slots are the P prompted slices of an object,
    the first one included, and then its Q corrected slices.
    """

    object_valid: np.ndarray  # bool [K]
    prompt_step: np.ndarray  # int32 [K]: the step, from 0, on which an object is prompted first
    coords: np.ndarray  # float32 [K, T, 2], pixels
    point_labels: np.ndarray  # int32 [K, T]
    token_valid: np.ndarray  # bool [K, T]
    multimask: np.ndarray  # bool [K]
    further_step: NotRequired[np.ndarray]  # int32 [K, P - 1], or NO_STEP
    further_coords: NotRequired[np.ndarray]  # float32 [K, P - 1, T, 2]
    further_point_labels: NotRequired[np.ndarray]  # int32 [K, P - 1, T]
    further_token_valid: NotRequired[np.ndarray]  # bool [K, P - 1, T]
    further_multimask: NotRequired[np.ndarray]  # bool [K, P - 1]
    mask_prompt: NotRequired[np.ndarray]  # bool [K]: the first prompt is the mask, and not the tokens
    corrected_step: NotRequired[np.ndarray]  # int32 [K, Q], or NO_STEP
    clicks: NotRequired[np.ndarray]  # int32 [K, P + Q]: number of corrective clicks of a slot
    click_draw: NotRequired[np.ndarray]  # float32 [K, P + Q, C]: in [0, 1), or AT_CENTRE


@dataclass
class _Tokens:
    """The tokens of one prompt: "not a point" twice, as for an object without a prompt, until one is drawn."""

    coords: np.ndarray = field(default_factory=lambda: np.zeros((PROMPT_TOKENS, 2), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.full(PROMPT_TOKENS, -1, np.int32))
    valid: np.ndarray = field(default_factory=lambda: np.arange(PROMPT_TOKENS) < 2)
    multimask: bool = True


def prompt_shapes(config: DataConfig) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and dtype of each field of `ClipPrompts`."""
    k, prompts = config.clips.objects, config.prompts
    further, corrected = prompts.prompted_slices - 1, prompts.corrections.corrected_slices
    clicks = prompts.corrections.clicks
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "object_valid": ((k,), np.bool_),
        "prompt_step": ((k,), np.int32),
        "coords": ((k, PROMPT_TOKENS, 2), np.float32),
        "point_labels": ((k, PROMPT_TOKENS), np.int32),
        "token_valid": ((k, PROMPT_TOKENS), np.bool_),
        "multimask": ((k,), np.bool_),
    }
    if further:
        shapes |= {
            "further_step": ((k, further), np.int32),
            "further_coords": ((k, further, PROMPT_TOKENS, 2), np.float32),
            "further_point_labels": ((k, further, PROMPT_TOKENS), np.int32),
            "further_token_valid": ((k, further, PROMPT_TOKENS), np.bool_),
            "further_multimask": ((k, further), np.bool_),
        }
    if prompts.mask_prompt_probability:
        shapes["mask_prompt"] = ((k,), np.bool_)
    if clicks:
        slots = prompts.prompted_slices + corrected
        shapes |= {"clicks": ((k, slots), np.int32), "click_draw": ((k, slots, clicks), np.float32)}
        if corrected:
            shapes["corrected_step"] = ((k, corrected), np.int32)
    return shapes


def check_prompts(config: DataConfig) -> None:
    """Check the numbers of prompted slices, corrected slices and clicks.

    Raises:
        UserError: one is out of range, or slices are to be corrected without clicks.
    """
    prompts, corrections, d = config.prompts, config.prompts.corrections, config.slices
    if not 1 <= prompts.prompted_slices <= d:
        raise UserError(
            f"data.prompts.prompted_slices: {prompts.prompted_slices} of the {d} slices of a clip; use 1 to {d}"
        )
    if not 0 <= corrections.clicks <= MAX_CLICKS:
        raise UserError(f"data.prompts.corrections.clicks: {corrections.clicks} on a slice; use 0 to {MAX_CLICKS}")
    if not 0 <= corrections.corrected_slices < d:
        raise UserError(
            f"data.prompts.corrections.corrected_slices: {corrections.corrected_slices} of the {d} slices of a clip; "
            f"use 0 to {d - 1}"
        )
    if corrections.corrected_slices and not corrections.clicks:
        raise UserError(
            "data.prompts.corrections: corrected_slices needs clicks; set clicks to 1 or more, or corrected_slices to 0"
        )


def draw_prompts(
    masks: SliceMasks,
    shown: Sequence[Target],
    targets: Sequence[Target],
    prompted: int,
    pixel_mm: tuple[float, float],
    data: DataConfig,
    rng: np.random.Generator,
) -> ClipPrompts:
    """Prompt each object by a box, a point or its mask on the first slice that shows it, from step `prompted` on.

    Args:
        masks: of the slices inside the volume.
        shown: the objects of the clip, at most K.
        targets: all objects of the case.
        prompted: the step of the prompted slice; earlier slices only give context.
        pixel_mm: (dy, dx).
        data: K, and the probabilities of the kinds of prompts.
        rng: source of everything random.
    """
    objects, config = data.clips.objects, data.prompts
    first = [masks.first_step(target, prompted) for target in shown]
    drawn = _empty_prompts(data)
    drawn["object_valid"][: len(shown)] = [step is not None for step in first]
    drawn["prompt_step"][: len(shown)] = [step or 0 for step in first]
    for k in np.flatnonzero(drawn["object_valid"]).tolist():
        step = int(drawn["prompt_step"][k])
        tokens = _draw_tokens(masks, step, shown[k], targets, pixel_mm, config, rng)
        drawn["coords"][k], drawn["point_labels"][k] = tokens.coords, tokens.labels
        drawn["token_valid"][k], drawn["multimask"][k] = tokens.valid, tokens.multimask
    # Drawn after the first prompts, so that these do not depend on whether the following are configured.
    for k in np.flatnonzero(drawn["object_valid"]).tolist():
        if config.mask_prompt_probability:
            drawn["mask_prompt"][k] = rng.random() < config.mask_prompt_probability
        if config.prompted_slices > 1:
            _draw_further(drawn, k, masks, shown[k], targets, pixel_mm, config, rng)
    if config.corrections.clicks:
        for k in range(objects):
            _draw_clicks(drawn, k, masks.depth, config, rng)
    return drawn


def replace_by_absent_objects(
    clip: ClipPrompts,
    labels: np.ndarray,
    masks: SliceMasks,
    targets: Sequence[Target],
    probability: float,
    rng: np.random.Generator,
) -> None:
    """Replace objects of a clip, in place, by absent ones: a point outside of all `targets`, and empty masks.

    Without such clips a model can learn to ignore its prompt, because the prompt is always on the same kind of object.

    Args:
        clip: the prompts.
        labels: `[D, H, W]`, of which bit k is object k.
        masks: of the slices inside the volume.
        targets: all objects of the case.
        probability: of each object.
        rng: source of everything random.
    """
    if not probability:
        return
    for k in np.flatnonzero(clip["object_valid"]).tolist():
        if rng.random() >= probability:
            continue
        outside = ~masks.any_of(int(clip["prompt_step"][k]), targets)
        if not outside.any():
            continue
        labels &= ~labels.dtype.type(1 << k)
        clip["coords"][k], clip["point_labels"][k], clip["token_valid"][k] = 0, -1, False
        clip["coords"][k, 0], clip["point_labels"][k, 0] = simulation.random_point(outside, rng), 1
        clip["token_valid"][k, :2], clip["multimask"][k] = True, True
        if "mask_prompt" in clip:
            clip["mask_prompt"][k] = False  # nobody gives an empty mask first
        if "further_step" in clip:
            clip["further_step"][k] = NO_STEP


def _empty_prompts(data: DataConfig) -> ClipPrompts:
    """Return prompts of objects that are all invalid."""
    drawn: dict[str, np.ndarray] = {
        name: np.zeros(shape, dtype) for name, (shape, dtype) in prompt_shapes(data).items()
    }
    for name in ("point_labels", "further_point_labels", "further_step", "corrected_step"):
        if name in drawn:
            drawn[name][:] = -1
    for name in ("token_valid", "further_token_valid"):
        if name in drawn:
            drawn[name][..., :2] = True
    for name in ("multimask", "further_multimask"):
        if name in drawn:
            drawn[name][:] = True
    return ClipPrompts(**drawn)  # type: ignore[typeddict-item]


def _draw_tokens(
    masks: SliceMasks,
    step: int,
    target: Target,
    targets: Sequence[Target],
    pixel_mm: tuple[float, float],
    config: PromptConfig,
    rng: np.random.Generator,
) -> _Tokens:
    """Prompt an object by a box or a point on one slice that shows it."""
    tokens, mask = _Tokens(), masks.mask(step, target)
    if rng.random() < config.box_prompt_probability:
        box = simulation.jitter_box(simulation.box_of(mask), 0.05, rng, mask.shape)
        tokens.coords[:2], tokens.labels[:2] = np.reshape(box, (2, 2)), (2, 3)
        tokens.valid[2], tokens.multimask = True, False
        return tokens
    if rng.random() < config.random_point_probability:
        tokens.coords[0], tokens.labels[0] = simulation.random_point(mask, rng), 1
    else:
        tokens.coords[0], tokens.labels[0] = simulation.centre_point(mask, pixel_mm), 1
    if config.negative_point_probability and rng.random() < config.negative_point_probability:
        others = masks.any_of(step, targets) & ~mask
        tokens.coords[1], tokens.labels[1] = simulation.random_point(others if others.any() else ~mask, rng), 0
        tokens.valid[2], tokens.multimask = True, False  # as two clicks at inference
    return tokens


def _draw_further(
    drawn: ClipPrompts,
    k: int,
    masks: SliceMasks,
    target: Target,
    targets: Sequence[Target],
    pixel_mm: tuple[float, float],
    config: PromptConfig,
    rng: np.random.Generator,
) -> None:
    """Prompt object k, in place, on up to P - 1 later slices that show it."""
    later = range(int(drawn["prompt_step"][k]) + 1, masks.depth)
    shown = [step for step in later if masks.mask(step, target).any()]
    count = min(int(rng.integers(config.prompted_slices)), len(shown))
    for slot, step in enumerate(sorted(rng.choice(shown, count, replace=False).tolist()) if count else []):
        tokens = _draw_tokens(masks, step, target, targets, pixel_mm, config, rng)
        drawn["further_step"][k, slot] = step
        drawn["further_coords"][k, slot], drawn["further_point_labels"][k, slot] = tokens.coords, tokens.labels
        drawn["further_token_valid"][k, slot] = tokens.valid
        drawn["further_multimask"][k, slot] = tokens.multimask


def _draw_clicks(drawn: ClipPrompts, k: int, depth: int, config: PromptConfig, rng: np.random.Generator) -> None:
    """Choose the corrected slices of object k, in place, and the number and draws of the clicks of each slot.

    A slice with a mask prompt is not corrected, because the mask is its output.
    """
    corrections = config.corrections
    drawn["clicks"][k] = rng.integers(corrections.clicks + 1, size=drawn["clicks"].shape[1])
    at_centre = rng.random(drawn["click_draw"].shape[1:]) < corrections.centre_click_probability
    drawn["click_draw"][k] = np.where(at_centre, AT_CENTRE, rng.random(at_centre.shape, np.float32))
    prompted = {int(drawn["prompt_step"][k]), *(drawn["further_step"][k].tolist() if "further_step" in drawn else [])}
    if corrections.corrected_slices:
        candidates = [step for step in range(int(drawn["prompt_step"][k]) + 1, depth) if step not in prompted]
        count = min(int(rng.integers(corrections.corrected_slices + 1)), len(candidates))
        chosen = sorted(rng.choice(candidates, count, replace=False).tolist()) if count else []
        drawn["corrected_step"][k, :count] = chosen
    if "mask_prompt" in drawn and drawn["mask_prompt"][k]:
        drawn["clicks"][k, 0] = 0
