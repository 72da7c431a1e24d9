"""Patches: boxes of a case at its stored spacing, some of them about a voxel of a class, as nnU-Net draws them.

What lies outside of the volume has the window's lowest value and no class. In-plane rotation and scaling read a larger
square, so that they bring nothing in from outside of the volume.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypedDict

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import draw_motion, shade
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.view import ModelView

Triple = tuple[int, int, int]


class Patch(TypedDict):
    """One patch; batches add a leading axis B."""

    image: np.ndarray  # float32 [D, H, W] in [0, 1]
    labels: np.ndarray  # uint8 [D, H, W]: 0, or 1 + the place of a class in `view.classes`


def patch_shapes(patch: Triple) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of each field of a patch."""
    return {"image": (patch, np.float32), "labels": (patch, np.uint8)}


def cut_patch(view: ModelView, case: CaseEntry, config: DataConfig, size: Triple, rng: np.random.Generator) -> Patch:
    """Cut and augment one random patch; everything random comes from `rng`.

    Args:
        view: without an image size.
        case: holds one of the classes.
        config: `foreground`, and augmentation (but for `shift`: patches lie anywhere).
        size: (D, H, W), voxels.
        rng: the source of randomness.

    Raises:
        UserError: the shard is damaged.
    """
    still = replace(config, shift=0.0)
    reach = (1 + config.scaling) * math.sqrt(2) if config.rotation else 1 + config.scaling
    side = max(size[1:]) if not (config.rotation or config.scaling) else math.ceil(max(size[1:]) * reach)
    read = (size[0], side, side)
    centre = _centre(view, case, size, rng, rng.random() < config.foreground)
    start = [at - n // 2 for at, n in zip(centre, read, strict=True)]
    values, labels = _box(view, case, start, read)
    motion = draw_motion(side, case.spacing[1:], still, rng)
    values, labels = motion.slices(values), motion.labels(labels)
    rows, columns = (slice(side // 2 - n // 2, side // 2 - n // 2 + n) for n in size[1:])
    values = np.ascontiguousarray(values[:, rows, columns])
    shade(values, still, rng)
    place = np.zeros(256, np.uint8)
    place[list(view.classes)] = 1 + np.arange(len(view.classes))
    return Patch(image=values, labels=place[labels[:, rows, columns]])


def _centre(view: ModelView, case: CaseEntry, size: Triple, rng: np.random.Generator, foreground: bool) -> list[int]:
    """The voxel in the middle: one of a class, or of any patch inside the volume; then as far inside as it fits."""
    if foreground:
        areas = view.areas(case)
        value = int(rng.choice(sorted(areas)))
        z = int(rng.choice(case.shape[0], p=areas[value] / areas[value].sum()))
        ys, xs = np.nonzero(view.labels(case, [z])[0] == value)
        chosen = int(rng.integers(len(ys)))
        at = [z, int(ys[chosen]), int(xs[chosen])]
    else:
        at = [int(rng.integers(n)) for n in case.shape]
    return [
        # A volume smaller than the patch lies in its middle.
        n // 2 if n <= p else min(max(a, p // 2), n - p + p // 2)
        for a, n, p in zip(at, case.shape, size, strict=True)
    ]


def _box(view: ModelView, case: CaseEntry, start: list[int], size: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of a box, which may reach out of the volume."""
    spans = [(max(a, 0), min(a + n, whole)) for a, n, whole in zip(start, size, case.shape, strict=True)]
    values, labels = view.read(case, range(*spans[0]), (slice(*spans[1]), slice(*spans[2])))
    pads = [(low - a, a + n - high) for (low, high), a, n in zip(spans, start, size, strict=True)]
    return np.pad(values, pads), np.pad(labels, pads)
