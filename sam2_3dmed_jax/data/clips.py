"""Training clips: D slices of a case, with K objects and their prompts.

Slices are in the order of propagation, in either z direction, and start at the prompted slice or at most D / 2 steps
before it. A clip may extend beyond the end of the object, or beyond the volume, where slices are padding. Anatomy is
never mirrored along z: each slice keeps its position.

A clip has slices and labels as they are stored. The compiled step resizes and augments them (`render`); here, only the
masks of prompted slices are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NotRequired, Protocol

import ml_dtypes
import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import INTENSITY_SHAPES, draw_intensity_change, draw_spatial_map
from sam2_3dmed_jax.data.case_reader import CaseReader, StoredSlices
from sam2_3dmed_jax.data.clip_prompts import ClipPrompts, draw_prompts, prompt_shapes, replace_by_absent_objects
from sam2_3dmed_jax.data.clip_zoom import ClipZoom
from sam2_3dmed_jax.data.masks import SliceMasks
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.data.warp import IDENTITY
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.intensity import resize_matrix
from sam2_3dmed_jax.volume.label_classes import Target

MAX_OBJECTS = 32  # bits of the largest integer of compiled programs


class Clip(ClipPrompts):
    """One clip; batches add a leading axis B."""

    grey: NotRequired[np.ndarray]  # int16 [D, H, W]: stored values, padded to the largest slices of the dataset
    window: NotRequired[np.ndarray]  # float32 [2]: lower end and width, in stored values
    intensity: NotRequired[np.ndarray]  # float32 [4], see `augment.IntensityChange`
    noise_key: NotRequired[np.ndarray]  # uint32 [2]
    # Instead of these four, the cached features:
    embedding: NotRequired[np.ndarray]  # bfloat16 [D, h, w, C], h = w = S/16
    stride8: NotRequired[np.ndarray]  # bfloat16 [D, 2h, 2w, C/4]
    stride4: NotRequired[np.ndarray]  # bfloat16 [D, 4h, 4w, C/8]
    labels: np.ndarray  # unsigned [D, H, W], padded: bit k is object k
    vertical: NotRequired[np.ndarray]  # float32 [S, H]: resizing of the rows; absent if slices have S x S pixels
    horizontal: NotRequired[np.ndarray]  # float32 [W, S]
    inverse_map: np.ndarray  # int32 [2, 3]: from pixels of S x S to their origins (`warp`)
    slice_valid: np.ndarray  # bool [D]: False for padding
    slice_index: np.ndarray  # float32 [D]: index in the volume
    position_mm: np.ndarray  # float32 [D]


class RenderedClip(ClipPrompts):
    """One clip as models are trained on it (`render`); batches add a leading axis B."""

    slices: np.ndarray  # float32 [D, S, S] in [0, 1]
    masks: np.ndarray  # uint8 [D, K, S, S]
    slice_valid: np.ndarray  # bool [D]
    slice_index: np.ndarray  # float32 [D]
    position_mm: np.ndarray  # float32 [D]


class CachedFeatures(Protocol):
    """Encoder features of slices, which clips contain instead of the slices."""

    def read(self, case: PreparedCase, slices: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `embedding`, `stride8` and `stride4` of the slices, bfloat16, padded with zeros to `[length, ...]`."""


def clip_shapes(
    config: DataConfig, size: int, stored: StoredSlices, features: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and dtype of each field of a clip.

    Args:
        config: number of slices and objects.
        size: S, pixels.
        stored: form of the stored slices.
        features: shapes of the cached features of a slice; None for clips of slices.
    """
    d, k = config.slices, config.clips.objects
    h, w, resized = stored
    inputs: dict[str, tuple[tuple[int, ...], type]] = {
        "grey": ((d, h, w), np.int16),
        "window": ((2,), np.float32),
        **INTENSITY_SHAPES,
    }
    if features is not None:
        inputs = {name: ((d, *shape), ml_dtypes.bfloat16) for name, shape in features.items()}
    if resized:
        inputs |= {"vertical": ((size, h), np.float32), "horizontal": ((w, size), np.float32)}
    return {
        **inputs,
        "labels": ((d, h, w), _bits(k).type),
        "inverse_map": ((2, 3), np.int32),
        "slice_valid": ((d,), np.bool_),
        "slice_index": ((d,), np.float32),
        "position_mm": ((d,), np.float32),
        **prompt_shapes(config),
    }


def cut_clip(
    reader: CaseReader,
    case: PreparedCase,
    config: DataConfig,
    rng: np.random.Generator,
    features: CachedFeatures | None = None,
) -> Clip:
    """Cut one random clip, and draw its augmentation.

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
    zoom = ClipZoom.draw(case, config.clips.zoom_probability, rng)
    area = _visible_areas(areas[main], zoom, reader.image_size) if areas else np.ones(case.shape[0], np.int64)
    steps, prompted = _choose_slices(area, config, rng)
    slice_valid = (steps >= 0) & (steps < case.shape[0])
    chosen = steps[: int(slice_valid.sum())].tolist()  # a clip that leaves the volume does not return to it
    grey, labels = reader.read(case, chosen)
    region = zoom.place(labels[prompted], main, rng)
    pixel_mm = reader.pixel_mm(case, region)
    masks = _draw_masks(labels[:, *region.at], reader.image_size, pixel_mm, main, prompted, config, rng)
    intensity = draw_intensity_change(config.augmentation, rng)
    objects = [main, *(target for target in targets if target != main)][: config.clips.objects]
    stored, length = reader.stored_slices, len(steps)
    clip = Clip(
        labels=_padded(_object_bits(labels, objects, config.clips.objects), length, stored),
        inverse_map=masks.inverse_map,
        slice_valid=slice_valid,
        slice_index=steps.astype(np.float32),
        position_mm=case.positions_mm()[np.clip(steps, 0, case.shape[0] - 1)],
        **draw_prompts(masks, objects, targets, prompted, pixel_mm, config, rng),
    )
    if stored.resized:
        clip["vertical"] = _padded_matrix(region.top, region.rows, reader.image_size, stored.rows)
        clip["horizontal"] = _padded_matrix(region.left, region.columns, reader.image_size, stored.columns).T
    if not areas:
        clip["object_valid"][0], clip["prompt_step"][0] = True, prompted
    absent = config.prompts.absent_object_probability if areas else 1.0
    replace_by_absent_objects(clip, clip["labels"], masks, targets, absent, rng)
    if features is None:
        clip["grey"], clip["window"] = _padded(grey, length, stored), reader.stored_window(case)
        clip["intensity"], clip["noise_key"] = intensity["intensity"], intensity["noise_key"]
    else:
        clip["embedding"], clip["stride8"], clip["stride4"] = features.read(case, chosen, length)
    return clip


def _draw_masks(
    labels: np.ndarray,
    size: int,
    pixel_mm: tuple[float, float],
    main: Target,
    prompted: int,
    config: DataConfig,
    rng: np.random.Generator,
) -> SliceMasks:
    """Draw the spatial transform of a clip, and return the masks of its `labels` at the image size.

    The transform is left out if it moves the target `main` out of the slice of step `prompted`.
    """
    inverse = draw_spatial_map(size, pixel_mm, config.augmentation, rng)
    moved = SliceMasks(labels, inverse, size)
    if moved.mask(prompted, main).any():
        return moved
    still = SliceMasks(labels, IDENTITY, size)
    return still if still.mask(prompted, main).any() else moved


def _bits(objects: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest dtype with a bit for each object."""
    return np.min_scalar_type((1 << objects) - 1)


def _object_bits(labels: np.ndarray, objects: Sequence[Target], count: int) -> np.ndarray:
    """Return labels of which bit k is object k, as an integer with `count` bits or more."""
    bits = np.zeros(256, _bits(count))
    for k, target in enumerate(objects):
        bits[list(target)] |= bits.dtype.type(1 << k)
    return np.take(bits, labels)


def _padded(slices: np.ndarray, length: int, stored: StoredSlices) -> np.ndarray:
    """Return slices `[n, h, w]` with zeros after them, `[length, H, W]`."""
    n, h, w = slices.shape
    padded = np.zeros((length, stored.rows, stored.columns), slices.dtype)
    padded[:n, :h, :w] = slices
    return padded


@functools.lru_cache(maxsize=16)
def _padded_matrix(first: int, n_in: int, n_out: int, padded: int) -> np.ndarray:
    """Return `resize_matrix` of n_in voxels from `first` on, `[n_out, padded]`; read-only.

    Zero columns ignore the voxels around a region and the padding of slices.
    """
    matrix = np.pad(resize_matrix(n_in, n_out), ((0, 0), (first, padded - first - n_in)))
    matrix.flags.writeable = False
    return matrix


def _visible_areas(areas: np.ndarray, zoom: ClipZoom, size: int) -> np.ndarray:
    """Return the areas `[D]`, with 0 where an object covers less than a pixel at S, unless it does so on all slices."""
    height, width = zoom.shape
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
