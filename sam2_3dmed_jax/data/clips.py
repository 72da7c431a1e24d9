"""Clips: D slices of a case walked outward from a prompted slice, with K objects and their prompts.

A clip is walked once in either z direction. It may run past the object's end, or past the volume's, where slices are
padding. Anatomy is never mirrored along z: a clip walked downwards keeps each slice's position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from sam2_3dmed_jax.config import DataConfig, PreprocessingConfig
from sam2_3dmed_jax.data.augment import augment
from sam2_3dmed_jax.data.msd import Case
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import intensity, io, prompts

TOKENS = 4  # prompt tokens an object: two box corners, or a point, and one "not a point"; a power of two


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case as the model sees it, in memory."""

    id: str
    slices: np.ndarray  # float16 [D, S, S] in [0, 1], windowed
    labels: np.ndarray  # uint8 [D, S, S]
    positions_mm: np.ndarray  # float32 [D], superior
    pixel_mm: tuple[float, float]  # (dy, dx) of the S x S slice
    areas: dict[int, np.ndarray]  # each label value that occurs, to its pixels on each slice, int [D]


class Clip(TypedDict):
    """One clip; batches add a leading axis B."""

    slices: np.ndarray  # float32 [D, S, S] in [0, 1]
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


def prepare_case(
    case: Case, classes: tuple[int, ...], preprocessing: PreprocessingConfig, image_size: int
) -> PreparedCase:
    """Read a case, window and resize it.

    Raises:
        UserError: files that cannot be read or do not fit each other.
    """
    volume = io.read_volume(case.image)
    labels = io.read_labels(case.label, volume)
    small = np.zeros((len(labels), image_size, image_size), np.uint8)
    for value in classes:
        share = intensity.resize_slices((labels == value).astype(np.float32), image_size)
        small[share >= 0.5] = value
    areas = {value: (small == value).sum((1, 2)) for value in classes}
    height, width = volume.array.shape[1:]
    window = intensity.window_of(volume, preprocessing.window)
    _, dy, dx = volume.spacing
    return PreparedCase(
        id=case.id,
        slices=intensity.prepare_slices(volume.array, window, image_size).astype(np.float16),
        labels=small,
        positions_mm=volume.slice_positions_mm().astype(np.float32),
        pixel_mm=(dy * height / image_size, dx * width / image_size),
        areas={value: pixels for value, pixels in areas.items() if pixels.any()},
    )


def cut_clip(case: PreparedCase, config: DataConfig, rng: np.random.Generator) -> Clip:
    """Cut and augment one random clip; everything random comes from `rng`.

    Raises:
        UserError: the case holds none of the classes.
    """
    if not case.areas:
        raise UserError(f"{case.id}: it holds none of the classes to segment; leave it out")
    main = int(rng.choice(sorted(case.areas)))
    steps = _choose_slices(case, main, config, rng)
    valid = (steps >= 0) & (steps < len(case.slices))
    source = np.clip(steps, 0, len(case.slices) - 1)
    slices = np.where(valid[:, None, None], case.slices[source].astype(np.float32), 0.0)
    labels = np.where(valid[:, None, None], case.labels[source], 0)
    moved, moved_labels = augment(slices, labels, config, rng)
    if (moved_labels[0] == main).any():  # the prompted slice must still show its object
        slices, labels = moved, moved_labels

    values = [main, *(value for value in sorted(case.areas) if value != main)][: config.objects]
    masks = np.zeros((len(steps), config.objects, *labels.shape[1:]), np.uint8)
    for k, value in enumerate(values):
        masks[:, k] = labels == value
    holds = masks.any((2, 3))  # [D, K]
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
            box = prompts.jitter_box(prompts.box_of(mask), 0.05, rng, mask.shape)
            coords[k, :2], point_labels[k, :2] = np.reshape(box, (2, 2)), (2, 3)
            token_valid[k, 2], multimask[k] = True, False
        elif rng.random() < config.point_noise:
            coords[k, 0], point_labels[k, 0] = prompts.random_point(mask, rng), 1
        else:
            coords[k, 0], point_labels[k, 0] = prompts.centre_point(mask, case.pixel_mm), 1
    return Clip(
        slices=slices.astype(np.float32),
        masks=masks,
        slice_valid=valid,
        slice_index=steps.astype(np.float32),
        position_mm=case.positions_mm[source],
        object_valid=object_valid,
        prompt_step=prompt_step,
        coords=coords,
        point_labels=point_labels,
        token_valid=token_valid,
        multimask=multimask,
    )


def _choose_slices(case: PreparedCase, value: int, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """The slice index of each step; the first holds the object, some may lie outside the volume.

    But for clips about the object's end, the first slice is drawn in proportion to the object's area: users prompt
    where an object shows. Clips of an absent object jump to anywhere beyond its end: on a whole volume most slices
    are far from it.
    """
    areas = case.areas[value]
    present = np.flatnonzero(areas)
    direction = 1 if rng.random() < 0.5 else -1
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
        direction = direction if room[direction] else -direction
        gap = int(rng.integers(0, max(room[direction] - stride * (config.slices - 1), 0) + 1))
        last = ends[direction] + direction * gap
    return np.concatenate([[start], last + direction * stride * np.arange(1, config.slices)])
