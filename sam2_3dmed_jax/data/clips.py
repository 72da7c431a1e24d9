"""Training clips: D slices of a case, with K objects and their prompts.

Slices are in the order of propagation, in either z direction, and start at the prompted slice or at most D / 2 steps
before it. A clip may extend beyond the end of the object, or beyond the volume, where slices are padding. Anatomy is
never mirrored along z: each slice keeps its position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict

import ml_dtypes
import numpy as np

from sam2_3dmed_jax.config import DataConfig, PromptConfig
from sam2_3dmed_jax.data.augment import augment_intensity, draw_spatial_transform
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts import simulation
from sam2_3dmed_jax.volume.label_classes import Target

PROMPT_TOKENS = 4  # T: two box corners or a point, "not a point", and padding to a power of two


class ClipPrompts(TypedDict):
    """The prompts of a clip's objects."""

    object_valid: np.ndarray  # bool [K]
    prompt_step: np.ndarray  # int32 [K]: the step, from 0, on which an object is prompted
    coords: np.ndarray  # float32 [K, T, 2], pixels
    point_labels: np.ndarray  # int32 [K, T]
    token_valid: np.ndarray  # bool [K, T]
    multimask: np.ndarray  # bool [K]


class Clip(ClipPrompts):
    """One clip; batches add a leading axis B."""

    slices: NotRequired[np.ndarray]  # float32 [D, S, S] in [0, 1]; or instead of slices, the three cached features:
    embedding: NotRequired[np.ndarray]  # bfloat16 [D, h, w, C], h = w = S/16
    stride8: NotRequired[np.ndarray]  # bfloat16 [D, 2h, 2w, C/4]
    stride4: NotRequired[np.ndarray]  # bfloat16 [D, 4h, 4w, C/8]
    masks: np.ndarray  # uint8 [D, K, S, S]
    slice_valid: np.ndarray  # bool [D]: False for padding
    slice_index: np.ndarray  # float32 [D]: index in the volume
    position_mm: np.ndarray  # float32 [D]


class CachedFeatures(Protocol):
    """Encoder features of slices, which clips contain instead of the slices."""

    def read(self, case: PreparedCase, slices: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `embedding`, `stride8` and `stride4` of the slices, bfloat16, padded with zeros to `[length, ...]`."""


def clip_shapes(
    config: DataConfig, size: int, features: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and dtype of each field of a clip.

    Args:
        config: number of slices and objects.
        size: S, pixels.
        features: shapes of the cached features of a slice; None for clips of slices.
    """
    d, k = config.slices, config.clips.objects
    inputs: dict[str, tuple[tuple[int, ...], type]] = {"slices": ((d, size, size), np.float32)}
    if features is not None:
        inputs = {name: ((d, *shape), ml_dtypes.bfloat16) for name, shape in features.items()}
    return {
        **inputs,
        "masks": ((d, k, size, size), np.uint8),
        "slice_valid": ((d,), np.bool_),
        "slice_index": ((d,), np.float32),
        "position_mm": ((d,), np.float32),
        "object_valid": ((k,), np.bool_),
        "prompt_step": ((k,), np.int32),
        "coords": ((k, PROMPT_TOKENS, 2), np.float32),
        "point_labels": ((k, PROMPT_TOKENS), np.int32),
        "token_valid": ((k, PROMPT_TOKENS), np.bool_),
        "multimask": ((k,), np.bool_),
    }


def cut_clip(
    reader: CaseReader,
    case: PreparedCase,
    config: DataConfig,
    rng: np.random.Generator,
    features: CachedFeatures | None = None,
) -> Clip:
    """Cut and augment one random clip.

    An object of a few voxels may vanish at S. Then it is prompted on a later slice that shows it, or it is invalid.
    The clip of a case without the classes, which `prepare --keep-empty` keeps, has one absent object.

    Args:
        reader: reads the case.
        case: the case.
        config: `slices`, `clips`, `prompts` and `augmentation` are used.
        rng: source of everything random.
        features: cached features, which replace the slices and nothing else; augmentation must be off.

    Raises:
        UserError: the case contains none of the classes, or its shard is damaged.
    """
    areas = reader.areas(case)
    if not areas and not reader.keeps_empty:
        raise UserError(f"{case.id} contains none of the classes to segment; leave it out")
    targets = sorted(areas)
    main = targets[int(rng.integers(len(targets)))] if areas else reader.targets[0]
    area = _visible_areas(areas[main], case, reader.image_size) if areas else np.ones(case.shape[0], np.int64)
    steps, prompted = _choose_slices(area, config, rng)
    slice_valid = (steps >= 0) & (steps < case.shape[0])
    chosen = steps[: int(slice_valid.sum())].tolist()  # a clip that leaves the volume does not return to it
    values, labels = _read_augmented(reader, case, chosen, main, prompted, config, rng, with_values=features is None)
    objects = [main, *(target for target in targets if target != main)][: config.clips.objects]
    masks = np.zeros((len(steps), config.clips.objects, *labels.shape[1:]), np.uint8)
    for k, target in enumerate(objects):
        masks[: len(chosen), k] = reader.mask(labels, target)
    clip = Clip(
        masks=masks,
        slice_valid=slice_valid,
        slice_index=steps.astype(np.float32),
        position_mm=case.positions_mm()[np.clip(steps, 0, case.shape[0] - 1)],
        **_draw_prompts(masks, labels, prompted, reader.pixel_mm(case), config.prompts, rng),
    )
    if not areas:
        clip["object_valid"][0], clip["prompt_step"][0] = True, prompted
    _replace_by_absent_objects(clip, labels, config.prompts.absent_object_probability if areas else 1.0, rng)
    if features is None:
        padding = np.zeros((len(steps) - len(chosen), *values.shape[1:]), np.float32)
        clip["slices"] = np.concatenate([values, padding]) if len(padding) else values
    else:
        clip["embedding"], clip["stride8"], clip["stride4"] = features.read(case, chosen, len(steps))
    return clip


def _read_augmented(
    reader: CaseReader,
    case: PreparedCase,
    slices: Sequence[int],
    main: Target,
    prompted: int,
    config: DataConfig,
    rng: np.random.Generator,
    with_values: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Read and augment values float32 `[n, S, S]` and labels `[n, S, S]`; without values, n is 0 for these.

    The spatial transform is left out if it moves the target `main` out of the slice of step `prompted`. The number of
    random draws is the same with and without values.
    """
    size = reader.image_size
    if with_values:
        values, labels = reader.read(case, slices)
    else:
        values, labels = np.zeros((0, size, size), np.float32), reader.labels(case, slices)
    transform = draw_spatial_transform(size, reader.pixel_mm(case), config.augmentation, rng)
    moved = transform.labels(labels)
    if reader.mask(moved[prompted], main).any() or not reader.mask(labels[prompted], main).any():
        values, labels = transform.slices(values), moved
    augment_intensity(values, config.augmentation, rng)
    return values, labels


def _draw_prompts(
    masks: np.ndarray,
    labels: np.ndarray,
    prompted: int,
    pixel_mm: tuple[float, float],
    config: PromptConfig,
    rng: np.random.Generator,
) -> ClipPrompts:
    """Prompt each object by a box or a point on the first slice that shows it, from step `prompted` on.

    Args:
        masks: `[D, K, S, S]` uint8.
        labels: `[n, S, S]` of the n slices inside the volume, not 0 in any object, also in objects beyond the K.
        prompted: the step of the prompted slice; earlier slices only give context.
        pixel_mm: (dy, dx).
        config: probabilities of the kinds of prompts.
        rng: source of everything random.
    """
    objects = masks.shape[1]
    present = masks.reshape(*masks.shape[:2], -1).max(-1) > 0  # [D, K]
    present[:prompted] = False
    object_valid = np.asarray(present.any(0))
    prompt_step = np.where(object_valid, present.argmax(0), 0).astype(np.int32)
    coords = np.zeros((objects, PROMPT_TOKENS, 2), np.float32)
    point_labels = np.full((objects, PROMPT_TOKENS), -1, np.int32)
    token_valid = np.zeros((objects, PROMPT_TOKENS), bool)
    token_valid[:, :2] = True
    multimask = np.ones(objects, bool)
    for k in np.flatnonzero(object_valid).tolist():
        mask = masks[prompt_step[k], k] > 0
        if rng.random() < config.box_prompt_probability:
            box = simulation.jitter_box(simulation.box_of(mask), 0.05, rng, mask.shape)
            coords[k, :2], point_labels[k, :2] = np.reshape(box, (2, 2)), (2, 3)
            token_valid[k, 2], multimask[k] = True, False
        elif rng.random() < config.random_point_probability:
            coords[k, 0], point_labels[k, 0] = simulation.random_point(mask, rng), 1
        else:
            coords[k, 0], point_labels[k, 0] = simulation.centre_point(mask, pixel_mm), 1
        is_point = point_labels[k, 0] == 1
        if is_point and config.negative_point_probability and rng.random() < config.negative_point_probability:
            others = (labels[prompt_step[k]] != 0) & ~mask
            coords[k, 1], point_labels[k, 1] = simulation.random_point(others if others.any() else ~mask, rng), 0
            token_valid[k, 2], multimask[k] = True, False  # as two clicks at inference
    return ClipPrompts(
        object_valid=object_valid,
        prompt_step=prompt_step,
        coords=coords,
        point_labels=point_labels,
        token_valid=token_valid,
        multimask=multimask,
    )


def _replace_by_absent_objects(clip: Clip, labels: np.ndarray, probability: float, rng: np.random.Generator) -> None:
    """Replace objects of a clip, in place, by absent ones: a point outside of all objects, and empty masks.

    Without such clips a model can learn to ignore its prompt, because the prompt is always on the same kind of object.
    """
    if not probability:
        return
    for k in np.flatnonzero(clip["object_valid"]).tolist():
        outside = labels[clip["prompt_step"][k]] == 0
        if rng.random() >= probability or not outside.any():
            continue
        clip["masks"][:, k] = 0
        clip["coords"][k], clip["point_labels"][k], clip["token_valid"][k] = 0, -1, False
        clip["coords"][k, 0], clip["point_labels"][k, 0] = simulation.random_point(outside, rng), 1
        clip["token_valid"][k, :2], clip["multimask"][k] = True, True


def _visible_areas(areas: np.ndarray, case: PreparedCase, size: int) -> np.ndarray:
    """Return the areas `[D]`, with 0 where an object covers less than a pixel at S, unless it does so on all slices."""
    _, height, width = case.shape
    visible = np.where(areas * (size * size) >= height * width, areas, 0)
    return visible if visible.any() else areas


def _choose_slices(areas: np.ndarray, config: DataConfig, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return the slice index of each step, and the step of the prompted slice.

    The prompted slice shows the object; later slices may be outside of the volume. The prompted slice is drawn in
    proportion to the area of the object, because users prompt where an object is large; clips that continue past the
    end of the object start near this end. In clips of an absent object the other slices are anywhere beyond its end,
    because most slices of a volume are far from the object.
    """
    present = np.flatnonzero(areas)
    direction = -1 if rng.random() < config.clips.reverse_probability else 1
    stride = int(rng.integers(1, config.clips.max_stride + 1))
    ends = {1: int(present[-1]), -1: int(present[0])}
    draw, absent = rng.random(), config.clips.absent_probability
    if absent <= draw < absent + config.clips.past_end_probability:
        near_end = present[np.abs(present - ends[direction]) < max(config.slices // 2, 1) * stride]
        start = last = int(rng.choice(near_end))
    else:
        start = last = int(rng.choice(len(areas), p=areas / areas.sum()))
    if draw < absent:
        beyond = {1: len(areas) - 1 - ends[1], -1: ends[-1]}  # number of slices beyond the end
        if not beyond[direction] and 0 < config.clips.reverse_probability < 1:
            direction = -direction
        gap = int(rng.integers(0, max(beyond[direction] - stride * (config.slices - 1), 0) + 1))
        last = ends[direction] + direction * gap
    steps = np.concatenate([[start], last + direction * stride * np.arange(1, config.slices)])
    before = config.clips.context_before_probability
    if draw < absent or not before or rng.random() >= before:
        return steps, 0
    inside = start if direction > 0 else len(areas) - 1 - start  # number of slices before the prompted one
    prompted = int(rng.integers(min(1, inside // stride), min(config.slices // 2, inside // stride) + 1))
    return steps - direction * stride * prompted, prompted
