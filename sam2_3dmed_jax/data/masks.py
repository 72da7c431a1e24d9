"""Masks of objects at the image size of the model, from labels at the stored size.

A pixel belongs to an object that covers at least half of it. The shares are integers: weights of the resizing in units
of 1/2048, whose sums are exact in float32 in any order. The host, which draws prompts from the mask of one slice, and
every device, which computes the masks of all slices, therefore agree on every pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.data.warp import IDENTITY, nearest
from sam2_3dmed_jax.runtime.imagenet import ArrayT
from sam2_3dmed_jax.volume.intensity import resize_matrix
from sam2_3dmed_jax.volume.label_classes import Target
from sam2_3dmed_jax.volume.label_layers import mask_of_values

_LEVELS = np.float32(1 << 11)  # sums of products of two weights are below 2^24, up to which float32 has all integers


def covered(masks: ArrayT, vertical: ArrayT, horizontal: ArrayT) -> ArrayT:
    """Resize masks to the pixels that they cover at least half of.

    In JAX, call it with the matrix precision "highest".

    Args:
        masks: float32 `[..., H, W]` in {0, 1}.
        vertical: float32 `[rows, H]`, see `volume.intensity.resize_matrices`; zero columns are padding.
        horizontal: float32 `[W, columns]`.

    Returns:
        bool `[..., rows, columns]`.
    """
    vertical, horizontal = (vertical * _LEVELS).round(), (horizontal * _LEVELS).round()
    return _at_least_half(masks, vertical, horizontal, vertical.sum(1), horizontal.sum(0))


def _at_least_half(
    masks: ArrayT, vertical: ArrayT, horizontal: ArrayT, row_totals: ArrayT, column_totals: ArrayT
) -> ArrayT:
    """Compare weighted sums over masks with half of the weights; all are integers in float32."""
    share = vertical @ masks @ horizontal
    half = row_totals[:, None] * column_totals[None, :] / 2
    reached: ArrayT = share >= half.reshape((1,) * (masks.ndim - 2) + half.shape)
    return reached


class SliceMasks:
    """Masks of the slices of a clip at the image size, computed one by one when they are needed."""

    def __init__(self, labels: np.ndarray, inverse: np.ndarray, size: int):
        """Store the label values of a clip, uint8 `[n, H, W]`, its map (`warp`), int32 `[2, 3]`, and S."""
        self._labels, self.inverse_map, self._size = labels, inverse, size
        self._kept: dict[tuple[int, Target], np.ndarray] = {}

    @property
    def depth(self) -> int:
        """Number of slices inside the volume."""
        return len(self._labels)

    def mask(self, step: int, target: Target) -> np.ndarray:
        """Return the mask of an object on one slice, bool `[S, S]`; do not change it."""
        key = step, target
        if key not in self._kept:
            self._kept[key] = self._compute(mask_of_values(self._labels[step], target))
        return self._kept[key]

    def first_step(self, target: Target, start: int) -> int | None:
        """Return the first slice that shows an object, from slice `start` on, or None."""
        return next((step for step in range(start, len(self._labels)) if self.mask(step, target).any()), None)

    def any_of(self, step: int, targets: Sequence[Target]) -> np.ndarray:
        """Return the union of the masks of objects on one slice, bool `[S, S]`."""
        union = np.zeros((self._size, self._size), bool)
        for target in targets:
            union |= self.mask(step, target)
        return union

    def _compute(self, mask: np.ndarray) -> np.ndarray:
        """Resize and warp a mask, bool `[H, W]`."""
        size = self._size
        if not mask.any():
            return np.zeros((size, size), bool)
        if mask.shape != (size, size):
            mask = _covered_by_one(mask, size)
        if np.array_equal(self.inverse_map, IDENTITY):
            return mask
        return nearest(mask[None], self.inverse_map, (size, size))[0]


@functools.lru_cache(maxsize=16)
def _weights(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integer weights of one axis, `[n_out, n_in]`, and their sums `[n_out]`, as `covered` computes them."""
    weights = (resize_matrix(n_in, n_out) * _LEVELS).round()
    return weights, weights.sum(1)


def _covered_by_one(mask: np.ndarray, size: int) -> np.ndarray:
    """Return `covered` of one bool mask `[H, W]`, from the part of the slice that contains the object."""
    resized = np.zeros((size, size), bool)
    (vertical, row_totals), (horizontal, column_totals) = (_weights(n, size) for n in mask.shape)
    inside = _span(mask, 0), _span(mask, 1)
    vertical, horizontal = vertical[:, inside[0]], horizontal[:, inside[1]]
    rows, columns = _span(vertical, 0), _span(horizontal, 0)
    resized[rows, columns] = _at_least_half(
        mask[inside].astype(np.float32), vertical[rows], horizontal[columns].T, row_totals[rows], column_totals[columns]
    )
    return resized


def _span(array: np.ndarray, axis: int) -> slice:
    """Return the smallest range of an axis of `[rows, columns]` outside of which all values are 0."""
    (where,) = np.nonzero(array.any(1 - axis))
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)
