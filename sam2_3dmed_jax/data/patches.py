"""Training patches of the U-Net: boxes of a case at its stored spacing, some centred on the foreground as in nnU-Net.

Voxels outside of the volume have the lowest value of the window and no class. Rotation and scaling start from a larger
square, so that they do not move padding into the patch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypedDict

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import augment_intensity, draw_spatial_transform
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.prepared import PreparedCase

Shape3D = tuple[int, int, int]


class Patch(TypedDict):
    """One patch; batches add a leading axis B."""

    image: np.ndarray  # float32 [D, H, W] in [0, 1]
    labels: np.ndarray  # uint8 [D, H, W]: 0, or 1 + the index of a class in `reader.targets`


def patch_shapes(patch: Shape3D) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and dtype of each field of a patch."""
    return {"image": (patch, np.float32), "labels": (patch, np.uint8)}


def cut_patch(
    reader: CaseReader, case: PreparedCase, config: DataConfig, size: Shape3D, rng: np.random.Generator
) -> Patch:
    """Cut and augment one random patch.

    Args:
        reader: of image size 0.
        case: the case; a patch of one without the classes is anywhere.
        config: `patches` and `augmentation`; `shift` is not used, because patches are anywhere.
        size: (D, H, W), voxels.
        rng: source of everything random.

    Raises:
        UserError: the shard is damaged.
    """
    augmentation = replace(config.augmentation, shift=0.0)
    reach = (1 + augmentation.scaling) * math.sqrt(2) if augmentation.rotation else 1 + augmentation.scaling
    side = max(size[1:]) if not (augmentation.rotation or augmentation.scaling) else math.ceil(max(size[1:]) * reach)
    read_size = (size[0], side, side)
    centre = _centre(reader, case, size, rng, rng.random() < config.patches.foreground_probability)
    start = [middle - n // 2 for middle, n in zip(centre, read_size, strict=True)]
    values, labels = _read_box(reader, case, start, read_size)
    transform = draw_spatial_transform(side, case.spacing[1:], augmentation, rng)
    values, labels = transform.slices(values), transform.labels(labels)
    rows, columns = (slice(side // 2 - n // 2, side // 2 - n // 2 + n) for n in size[1:])
    values = np.ascontiguousarray(values[:, rows, columns])
    augment_intensity(values, augmentation, rng)
    class_index = np.zeros(256, np.uint8)
    class_index[[target[0] for target in reader.targets]] = 1 + np.arange(len(reader.targets))
    return Patch(image=values, labels=class_index[labels[:, rows, columns]])


def _centre(
    reader: CaseReader, case: PreparedCase, size: Shape3D, rng: np.random.Generator, foreground: bool
) -> list[int]:
    """Draw the centre voxel, of a class or anywhere, and move it so that the patch is inside the volume if it fits."""
    areas = reader.areas(case)
    if foreground and areas:
        target = sorted(areas)[int(rng.integers(len(areas)))]
        z = int(rng.choice(case.shape[0], p=areas[target] / areas[target].sum()))
        ys, xs = np.nonzero(reader.mask(reader.labels(case, [z])[0], target))
        chosen = int(rng.integers(len(ys)))
        voxel = [z, int(ys[chosen]), int(xs[chosen])]
    else:
        voxel = [int(rng.integers(n)) for n in case.shape]
    return [
        # A volume that is smaller than the patch is in the middle of it.
        n // 2 if n <= p else min(max(v, p // 2), n - p + p // 2)
        for v, n, p in zip(voxel, case.shape, size, strict=True)
    ]


def _read_box(reader: CaseReader, case: PreparedCase, start: list[int], size: Shape3D) -> tuple[np.ndarray, np.ndarray]:
    """Read values and labels of a box, padded where it extends beyond the volume."""
    spans = [(max(a, 0), min(a + n, whole)) for a, n, whole in zip(start, size, case.shape, strict=True)]
    values, labels = reader.read(case, range(*spans[0]), (slice(*spans[1]), slice(*spans[2])))
    pads = [(low - a, a + n - high) for (low, high), a, n in zip(spans, start, size, strict=True)]
    return np.pad(values, pads), np.pad(labels, pads)
