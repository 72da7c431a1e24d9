"""Connected components of a mask (26 neighbours): their sizes, the largest one, and those nearest to clicks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.metrics.mask_box import extent
from sam2_3dmed_jax.volume.geometry import NEIGHBOURS_26

Place = tuple[float, float, float]  # (d, h, w), fractional voxel index


class Components(NamedTuple):
    """The components of a mask in the smallest box around it."""

    numbers: np.ndarray  # int32, of the shape of the box; 0 is outside of the mask
    sizes: np.ndarray  # [n], voxels of the components 1 to n
    box: tuple[slice, slice, slice]

    @property
    def largest(self) -> int:
        """The number of the component with the most voxels."""
        return int(self.sizes.argmax()) + 1

    def at(self, place: Place) -> int:
        """Return the number of the component at a voxel, or 0 outside of the mask."""
        inside = [math.floor(x + 0.5) - side.start for x, side in zip(place, self.box, strict=True)]
        if any(not 0 <= i < n for i, n in zip(inside, self.numbers.shape, strict=True)):
            return 0
        return int(self.numbers[tuple(inside)])

    def nearest(self, place: Place, affine: np.ndarray) -> int:
        """Return the number of the component with the voxel nearest to a place, in mm of the canonical `affine`."""
        if number := self.at(place):
            return number
        voxels = np.argwhere(self.numbers)
        offsets = voxels + [side.start for side in self.box] - np.asarray(place)
        return int(self.numbers[tuple(voxels[np.square(offsets @ affine[:3, :3].T).sum(1).argmin()])])

    def mask_of(self, numbers: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
        """Return the mask of some components in the whole volume, bool `[D, H, W]`."""
        mask = np.zeros(shape, bool)
        mask[self.box] = np.isin(self.numbers, numbers)
        return mask


def components_of(mask: np.ndarray) -> Components:
    """Return the components of a mask, bool `[D, H, W]`; an empty mask has none."""
    if (found := extent(mask)) is None:
        nowhere = slice(0, 0)
        return Components(np.zeros((0, 0, 0), np.int32), np.zeros(0, int), (nowhere, nowhere, nowhere))
    d, h, w = (slice(first, last + 1) for first, last in zip(*found, strict=True))
    numbers, count = ndimage.label(mask[d, h, w], NEIGHBOURS_26)
    return Components(numbers, np.bincount(numbers.ravel(), minlength=count + 1)[1:], (d, h, w))
