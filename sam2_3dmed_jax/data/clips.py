"""Clips: D slices of a case walked outward from a prompted slice, with K objects and their prompts.

A clip is walked once in either z direction. It may run past the object's end, or past the volume's, where slices are
padding. Anatomy is never mirrored along z: a clip walked downwards keeps each slice's position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict

import ml_dtypes
import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import draw_motion, shade
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts import simulation

TOKENS = 4  # prompt tokens an object: two box corners, or a point, and one "not a point"; a power of two


class Clip(TypedDict):
    """One clip; batches add a leading axis B."""

    slices: NotRequired[np.ndarray]  # float32 [D, S, S] in [0, 1], or in their place what an encoder made of them:
    embedding: NotRequired[np.ndarray]  # bfloat16 [D, h, w, C], h = w = S/16
    stride8: NotRequired[np.ndarray]  # bfloat16 [D, 2h, 2w, C/4]
    stride4: NotRequired[np.ndarray]  # bfloat16 [D, 4h, 4w, C/8]
    masks: np.ndarray  # uint8 [D, K, S, S]
    slice_valid: np.ndarray  # bool [D]: False for padding
    slice_index: np.ndarray  # float32 [D]: index in the volume
    position_mm: np.ndarray  # float32 [D]
    object_valid: np.ndarray  # bool [K]
    prompt_step: np.ndarray  # int32 [K]: the step on which an object is prompted
    coords: np.ndarray  # float32 [K, T, 2], pixels
    point_labels: np.ndarray  # int32 [K, T]
    token_valid: np.ndarray  # bool [K, T]
    multimask: np.ndarray  # bool [K]


class Features(Protocol):
    """Slices encoded before, which clips take in place of the slices themselves."""

    def read(self, case: CaseEntry, slices: Sequence[int], room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`embedding`, `stride8` and `stride4`, bfloat16 `[room, ...]`: of the slices, then zeros."""


def clip_shapes(
    config: DataConfig, size: int, features: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of each field of a clip of slices of `size` pixels, or of their features of these shapes."""
    d, k = config.slices, config.objects
    seen: dict[str, tuple[tuple[int, ...], type]] = {"slices": ((d, size, size), np.float32)}
    if features is not None:
        seen = {name: ((d, *shape), ml_dtypes.bfloat16) for name, shape in features.items()}
    return {
        **seen,
        "masks": ((d, k, size, size), np.uint8),
        "slice_valid": ((d,), np.bool_),
        "slice_index": ((d,), np.float32),
        "position_mm": ((d,), np.float32),
        "object_valid": ((k,), np.bool_),
        "prompt_step": ((k,), np.int32),
        "coords": ((k, TOKENS, 2), np.float32),
        "point_labels": ((k, TOKENS), np.int32),
        "token_valid": ((k, TOKENS), np.bool_),
        "multimask": ((k,), np.bool_),
    }


def cut_clip(
    view: ModelView,
    case: CaseEntry,
    config: DataConfig,
    rng: np.random.Generator,
    features: Features | None = None,
) -> Clip:
    """Cut and augment one random clip; everything random comes from `rng`.

    With features, which no augmentation can change, the clip holds these in place of slices, and all else is the same.

    An object of a few voxels may vanish at S: then it is prompted on a later slice that shows it, or it is invalid.

    Raises:
        UserError: the case holds none of the classes, or its shard is damaged.
    """
    areas = view.areas(case)
    if not areas:
        raise UserError(f"{case.id}: it holds none of the classes to segment; leave it out")
    main = int(rng.choice(sorted(areas)))
    steps = _choose_slices(_visible(areas[main], case, view.image_size), config, rng)
    valid = (steps >= 0) & (steps < case.shape[0])
    size, shown = view.image_size, int(valid.sum())  # a walk that has left the volume does not return
    chosen = steps[:shown].tolist()
    if features is None:
        values, labels = view.read(case, chosen)
    else:  # what follows draws as much for no slices at all
        values, labels = np.zeros((0, size, size), np.float32), view.labels(case, chosen)
    motion = draw_motion(size, view.pixel_mm(case), config, rng)
    moved = motion.labels(labels)
    if (moved[0] == main).any() or not (labels[0] == main).any():  # else it has left the prompted slice
        values, labels = motion.slices(values), moved
    shade(values, config, rng)

    objects = [main, *(value for value in sorted(areas) if value != main)][: config.objects]
    masks = np.zeros((len(steps), config.objects, size, size), np.uint8)
    for k, value in enumerate(objects):
        np.equal(labels, value, out=masks[:shown, k].view(bool))
    holds = masks.reshape(*masks.shape[:2], -1).max(-1) > 0  # [D, K]
    object_valid = np.asarray(holds.any(0))
    prompt_step = np.where(object_valid, holds.argmax(0), 0).astype(np.int32)
    coords = np.zeros((config.objects, TOKENS, 2), np.float32)
    point_labels = np.full((config.objects, TOKENS), -1, np.int32)
    token_valid = np.zeros((config.objects, TOKENS), bool)
    token_valid[:, :2] = True
    multimask = np.ones(config.objects, bool)
    for k in np.flatnonzero(object_valid).tolist():
        mask = masks[prompt_step[k], k] > 0
        if rng.random() < config.box:
            box = simulation.jitter_box(simulation.box_of(mask), 0.05, rng, mask.shape)
            coords[k, :2], point_labels[k, :2] = np.reshape(box, (2, 2)), (2, 3)
            token_valid[k, 2], multimask[k] = True, False
        elif rng.random() < config.point_noise:
            coords[k, 0], point_labels[k, 0] = simulation.random_point(mask, rng), 1
        else:
            coords[k, 0], point_labels[k, 0] = simulation.centre_point(mask, view.pixel_mm(case)), 1
    clip = Clip(
        masks=masks,
        slice_valid=valid,
        slice_index=steps.astype(np.float32),
        position_mm=case.positions_mm()[np.clip(steps, 0, case.shape[0] - 1)],
        object_valid=object_valid,
        prompt_step=prompt_step,
        coords=coords,
        point_labels=point_labels,
        token_valid=token_valid,
        multimask=multimask,
    )
    if features is None:
        padding = np.zeros((len(steps) - shown, size, size), np.float32)
        clip["slices"] = np.concatenate([values, padding]) if len(padding) else values
    else:
        clip["embedding"], clip["stride8"], clip["stride4"] = features.read(case, chosen, len(steps))
    return clip


def _visible(areas: np.ndarray, case: CaseEntry, size: int) -> np.ndarray:
    """Areas `[D]` without the slices on which an object covers less than a pixel at S, if it covers more on any."""
    _, height, width = case.shape
    visible = np.where(areas * (size * size) >= height * width, areas, 0)
    return visible if visible.any() else areas


def _choose_slices(areas: np.ndarray, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """The slice index of each step; the first holds the object, some may lie outside the volume.

    But for clips about the object's end, the first slice is drawn in proportion to the object's area: users prompt
    where an object shows. Clips of an absent object jump to anywhere beyond its end: on a whole volume most slices
    are far from it.
    """
    present = np.flatnonzero(areas)
    direction = -1 if rng.random() < config.reverse else 1
    stride = int(rng.integers(1, config.stride + 1))
    ends = {1: int(present[-1]), -1: int(present[0])}
    kind = rng.random()
    if config.absent <= kind < config.absent + config.beyond:
        near = present[np.abs(present - ends[direction]) < max(config.slices // 2, 1) * stride]
        start = last = int(rng.choice(near))
    else:
        start = last = int(rng.choice(len(areas), p=areas / areas.sum()))
    if kind < config.absent:
        room = {1: len(areas) - 1 - ends[1], -1: ends[-1]}  # slices beyond the end
        if not room[direction] and 0 < config.reverse < 1:
            direction = -direction
        gap = int(rng.integers(0, max(room[direction] - stride * (config.slices - 1), 0) + 1))
        last = ends[direction] + direction * gap
    return np.concatenate([[start], last + direction * stride * np.arange(1, config.slices)])
