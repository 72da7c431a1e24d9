"""Label maps on the voxels of a volume, from the logits of its objects, computed on the device.

Logits are interpolated to the voxels and compared there, in blocks of slices and object by object, so that one small
program per size of slices serves any depth and any number of objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.inference.host_arrays import release
from sam2_3dmed_jax.inference.launches import copy_to_host_async, launched_ahead
from sam2_3dmed_jax.inference.padding import next_power_of_two, pad_rows
from sam2_3dmed_jax.volume.device_intensity import resize
from sam2_3dmed_jax.volume.intensity import resize_matrices, restore_logits
from sam2_3dmed_jax.volume.zoom import RegionLogits

BLOCK_VOXELS = 1 << 22  # of a block of slices, at most: 16 slices of 512 x 512
BLOCK = 16  # slices of a block, at most


def label_map(
    logits: np.ndarray, object_ids: Sequence[int], shape: tuple[int, int], threshold: float = 0.0
) -> np.ndarray:
    """Return the object with the largest interpolated logit at each voxel.

    Args:
        logits: float32 `[K, D, s, s]` of K objects.
        object_ids: of the objects; where logits are equal, the first one counts.
        shape: (H, W), voxels of a slice.
        threshold: voxels of which no logit is larger are 0.

    Returns:
        uint16 `[D, H, W]`.
    """
    depth = logits.shape[1]
    rows = min(BLOCK, next_power_of_two(depth), max(1, BLOCK_VOXELS // (shape[0] * shape[1])))
    labels = np.empty((depth, *shape), np.uint16)
    blocks = range(0, depth, rows)
    launches = launched_ahead(_launch(logits, object_ids, shape, threshold, blocks))
    for start, painted in zip(blocks, launches, strict=True):
        labels[start : start + rows] = jax.device_get(painted)[: depth - start]
    return labels


def label_map_of_regions(
    objects: Sequence[RegionLogits], object_ids: Sequence[int], shape: tuple[int, int], threshold: float = 0.0
) -> np.ndarray:
    """Return the label map of objects whose logits cover a region each; outside of it an object is background.

    It is computed on the host, since regions are small and only slices with a mask need work.

    Args:
        objects: logits of D slices of each object.
        object_ids: as of `label_map`.
        shape: (H, W), voxels of a slice.
        threshold: as of `label_map`.

    Returns:
        uint16 `[D, H, W]`.
    """
    depth = len(objects[0].logits)
    labels = np.zeros((depth, *shape), np.uint16)
    for index in range(depth):
        largest = np.full(shape, threshold, np.float32)
        for object_id, (logits, region) in zip(object_ids, objects, strict=True):
            if logits[index].max() > threshold:  # an interpolated logit is at most the largest one
                restored = restore_logits(logits[index : index + 1], region.shape)[0]
                is_larger = restored > largest[region.at]
                labels[index][region.at][is_larger] = object_id
                np.maximum(largest[region.at], restored, out=largest[region.at])
    return labels


def _launch(
    logits: np.ndarray, object_ids: Sequence[int], shape: tuple[int, int], threshold: float, blocks: range
) -> Iterator[jax.Array]:
    """Launch the label map of each block of slices when it is taken."""
    matrices = jax.device_put(resize_matrices(logits.shape[2:], shape))
    for start in blocks:
        painted = nothing(np.float32(threshold), (blocks.step, *shape))
        for object_id, own in zip(object_ids, logits, strict=True):
            block = pad_rows(own[start : start + blocks.step], blocks.step)
            painted = paint_object(*painted, block, np.uint16(object_id), *matrices)
        release(logits)
        labels, _ = painted
        copy_to_host_async(labels)
        yield labels


@partial(jax.jit, static_argnums=1)
def nothing(threshold: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return empty labels uint16 and the threshold as the largest logit so far, float32, both of `shape`."""
    return jnp.zeros(shape, jnp.uint16), jnp.full(shape, threshold, jnp.float32)


@partial(jax.jit, donate_argnums=(0, 1))
def paint_object(
    labels: jax.Array,
    largest: jax.Array,
    logits: jax.Array,
    object_id: jax.Array,
    vertical: jax.Array | None,
    horizontal: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Paint an object where its interpolated logit exceeds the largest one so far.

    Args:
        labels: uint16 `[T, H, W]`.
        largest: float32 `[T, H, W]`, the largest logit so far.
        logits: float32 `[T, s, s]`.
        object_id: uint16.
        vertical: float32 `[H, s]`, see `resize_matrices`; None if the slices have their size already.
        horizontal: float32 `[s, W]`; None if `vertical` is None.

    Returns:
        Both after the object.
    """
    restored = resize(logits, vertical, horizontal)
    is_larger = restored > largest
    return jnp.where(is_larger, object_id, labels), jnp.where(is_larger, restored, largest)
