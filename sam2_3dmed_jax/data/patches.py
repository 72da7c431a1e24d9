"""Training patches of the U-Net: boxes of a case at its stored spacing, some centred on the foreground as in nnU-Net.

Patches have stored values; the compiled step windows and augments them (`render`). Voxels outside of the volume have
the lowest value of the window and no class. Rotation and scaling start from a larger square, so that they do not move
padding into the patch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypedDict

import numpy as np

from sam2_3dmed_jax.config import AugmentationConfig, DataConfig
from sam2_3dmed_jax.data.augment import INTENSITY_SHAPES, draw_intensity_change, draw_spatial_map, moves_pixels
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.volume.label_layers import mask_of_values

Shape3D = tuple[int, int, int]


class Patch(TypedDict):
    """One patch; batches add a leading axis B."""

    grey: np.ndarray  # int16 [D, rows, columns]: stored values
    labels: np.ndarray  # uint8 [D, rows, columns]: 0, or 1 + the index of a class in `reader.targets`
    window: np.ndarray  # float32 [2]: lower end and width, in stored values
    inverse_map: np.ndarray  # int32 [2, 3]: from the patch [H, W] to `grey` (`warp`)
    intensity: np.ndarray  # float32 [4], see `augment.IntensityChange`
    noise_key: np.ndarray  # uint32 [2]


def patch_augmentation(config: DataConfig) -> AugmentationConfig:
    """Return the augmentation of patches; `shift` is not used, because patches are anywhere."""
    return replace(config.augmentation, shift=0.0)


def patch_shapes(size: Shape3D, config: DataConfig) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and dtype of each field of a patch of `size` (D, H, W)."""
    stored = _stored_size(size, patch_augmentation(config))
    return {
        "grey": (stored, np.int16),
        "labels": (stored, np.uint8),
        "window": ((2,), np.float32),
        "inverse_map": ((2, 3), np.int32),
        **INTENSITY_SHAPES,
    }


def cut_patch(
    reader: CaseReader, case: PreparedCase, config: DataConfig, size: Shape3D, rng: np.random.Generator
) -> Patch:
    """Cut one random patch, and draw its augmentation.

    Args:
        reader: of image size 0.
        case: the case; a patch of one without the classes is anywhere.
        config: `patches` and `augmentation`.
        size: (D, H, W), voxels.
        rng: source of everything random.

    Raises:
        UserError: the shard is damaged.
    """
    augmentation = patch_augmentation(config)
    stored = _stored_size(size, augmentation)
    centre = _centre(reader, case, size, rng, rng.random() < config.patches.foreground_probability)
    start = [middle - n // 2 for middle, n in zip(centre, stored, strict=True)]
    window = reader.stored_window(case)
    grey, labels = _read_box(reader, case, start, stored, _below(window))
    class_index = np.zeros(256, np.uint8)
    class_index[[target[0] for target in reader.targets]] = 1 + np.arange(len(reader.targets))
    inverse = draw_spatial_map(stored[1], case.spacing[1:], augmentation, rng)
    corner = [side // 2 - n // 2 for side, n in zip(stored[1:], size[1:], strict=True)]
    inverse = np.column_stack([inverse[:, :2], inverse[:, :2] @ np.array(corner, np.int32) + inverse[:, 2]])
    return Patch(
        grey=grey,
        labels=class_index[labels],
        window=window,
        inverse_map=inverse,
        **draw_intensity_change(augmentation, rng),
    )


def _stored_size(size: Shape3D, augmentation: AugmentationConfig) -> Shape3D:
    """Return the size of the box that is read: the patch, or a larger square that it is cut from after the warp."""
    if not moves_pixels(augmentation):
        return size
    reach = 1 + augmentation.scaling
    if augmentation.rotation:
        reach *= math.sqrt(2)
    side = math.ceil(max(size[1:]) * reach)
    return size[0], side, side


def _below(window: np.ndarray) -> int:
    """Return a stored value at or below the lower end of a window, for voxels outside of the volume."""
    limits = np.iinfo(np.int16)
    return int(np.clip(math.floor(window[0]), limits.min, limits.max))


def _centre(
    reader: CaseReader, case: PreparedCase, size: Shape3D, rng: np.random.Generator, foreground: bool
) -> list[int]:
    """Draw the centre voxel, of a class or anywhere, and move it so that the patch is inside the volume if it fits."""
    areas = reader.areas(case)
    if foreground and areas:
        target = sorted(areas)[int(rng.integers(len(areas)))]
        z = int(rng.choice(case.shape[0], p=areas[target] / areas[target].sum()))
        ys, xs = np.nonzero(mask_of_values(reader.read(case, [z])[1][0], target))
        chosen = int(rng.integers(len(ys)))
        voxel = [z, int(ys[chosen]), int(xs[chosen])]
    else:
        voxel = [int(rng.integers(n)) for n in case.shape]
    return [
        # A volume that is smaller than the patch is in the middle of it.
        n // 2 if n <= p else min(max(v, p // 2), n - p + p // 2)
        for v, n, p in zip(voxel, case.shape, size, strict=True)
    ]


def _read_box(
    reader: CaseReader, case: PreparedCase, start: list[int], size: Shape3D, outside: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read stored values and labels of a box, padded with `outside` and 0 where it extends beyond the volume."""
    spans = [(max(a, 0), min(a + n, whole)) for a, n, whole in zip(start, size, case.shape, strict=True)]
    crop = slice(None), slice(*spans[1]), slice(*spans[2])
    values, labels = (x[crop] for x in reader.read(case, range(*spans[0])))
    pads = [(low - a, a + n - high) for (low, high), a, n in zip(spans, start, size, strict=True)]
    return np.pad(values, pads, constant_values=outside), np.pad(labels, pads)
