"""Draw of the region of a training clip, by the geometry of `predict --zoom` (`volume.zoom`).

Sides are those that a region has while it grows: log-uniform from the smallest one of `--zoom auto` to twice the one of
a box around the object, and at most the whole slice. So the model also sees regions that an object does not fit in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.volume.label_classes import Target
from sam2_3dmed_jax.volume.label_layers import mask_of_values
from sam2_3dmed_jax.volume.zoom import (
    AUTO,
    CLICK_MM,
    GROWTH,
    Extent,
    Region,
    extent_of_mask,
    region_around,
    region_shape,
    side_around,
    whole_side,
)

OFF_CENTRE = 1 / 8  # most distance of the chosen voxel from the centre, in sides: as much as rounding and a box give


@dataclass(frozen=True)
class ClipZoom:
    """Whether a clip is a region of its slices.

    Attributes:
        slice_shape: (H, W), voxels of a slice.
        pixel_mm: (dy, dx).
        is_zoomed: False: whole slices.
    """

    slice_shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    is_zoomed: bool

    @classmethod
    def draw(cls, case: PreparedCase, probability: float, rng: np.random.Generator) -> ClipZoom:
        """Draw between a region and whole slices; without a probability, nothing is drawn from `rng`."""
        (_, height, width), (_, dy, dx) = case.shape, case.spacing
        return cls((height, width), (dy, dx), bool(probability) and rng.random() < probability)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the region around a small object, before it is placed."""
        return region_shape(GROWTH * CLICK_MM, self.slice_shape, self.pixel_mm) if self.is_zoomed else self.slice_shape

    def place(self, labels: np.ndarray, target: Target, rng: np.random.Generator) -> Region:
        """Draw the side of the region, and its position around a voxel of the object.

        Args:
            labels: integers `[H, W]`, of the prompted slice.
            target: the values of the object; if the slice has none of them, the voxel is anywhere.
            rng: source of everything random; whole slices draw nothing.
        """
        if not self.is_zoomed:
            return Region(0, 0, *self.slice_shape)
        mask = mask_of_values(labels, target)
        whole = whole_side(self.slice_shape, self.pixel_mm)
        fitting = side_around(extent_of_mask(mask) or Extent(0, 0, 0, 0), AUTO, self.pixel_mm)
        smallest, largest = (math.log(min(side, whole)) for side in (CLICK_MM, GROWTH * fitting))
        side_mm = math.exp(rng.uniform(smallest, largest))
        rows, columns = np.nonzero(mask if mask.any() else ~mask)
        chosen = int(rng.integers(len(rows)))
        y, x = (
            float(voxel[chosen]) + rng.uniform(-OFF_CENTRE, OFF_CENTRE) * side_mm / mm
            for voxel, mm in zip((rows, columns), self.pixel_mm, strict=True)
        )
        height, width = self.slice_shape
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        return region_around(Extent(y, x, y, x), side_mm, self.slice_shape, self.pixel_mm)
