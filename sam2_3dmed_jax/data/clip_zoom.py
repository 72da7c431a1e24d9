"""Draw of the region of a training clip, by the geometry of `predict --zoom` (`volume.zoom`).

The side is log-uniform from the smallest one of `--zoom auto` to the whole slice, so that the model also sees regions
that the object does not fit in, as it does before a region grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.volume.label_classes import Target
from sam2_3dmed_jax.volume.label_layers import mask_of_values
from sam2_3dmed_jax.volume.zoom import CLICK_MM, Extent, Region, region_around, region_shape, whole_side

OFF_CENTRE = 1 / 8  # most distance of the chosen voxel from the centre, in sides: as much as rounding and a box give


@dataclass(frozen=True)
class ClipZoom:
    """The size of a clip's region.

    Attributes:
        slice_shape: (H, W), voxels of a slice.
        pixel_mm: (dy, dx).
        side_mm: None: whole slices.
    """

    slice_shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    side_mm: float | None

    @classmethod
    def draw(cls, case: PreparedCase, probability: float, rng: np.random.Generator) -> ClipZoom:
        """Draw the size of a region, or whole slices; without a probability, nothing is drawn from `rng`."""
        (_, height, width), (_, dy, dx) = case.shape, case.spacing
        shape, pixel_mm = (height, width), (dy, dx)
        side = None
        if probability and rng.random() < probability:
            whole = whole_side(shape, pixel_mm)
            side = math.exp(rng.uniform(math.log(min(CLICK_MM, whole)), math.log(whole)))
        return cls(shape, pixel_mm, side)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the region."""
        return self.slice_shape if self.side_mm is None else region_shape(self.side_mm, self.slice_shape, self.pixel_mm)

    def place(self, labels: np.ndarray, target: Target, rng: np.random.Generator) -> Region:
        """Draw the position of the region around a voxel of the object.

        Args:
            labels: integers `[H, W]`, of the prompted slice.
            target: the values of the object; if the slice has none of them, the voxel is anywhere.
            rng: source of everything random; whole slices draw nothing.
        """
        if self.side_mm is None:
            return Region(0, 0, *self.slice_shape)
        mask = mask_of_values(labels, target)
        rows, columns = np.nonzero(mask if mask.any() else ~mask)
        chosen = int(rng.integers(len(rows)))
        y, x = (
            float(voxel[chosen]) + rng.uniform(-OFF_CENTRE, OFF_CENTRE) * self.side_mm / mm
            for voxel, mm in zip((rows, columns), self.pixel_mm, strict=True)
        )
        height, width = self.slice_shape
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        return region_around(Extent(y, x, y, x), self.side_mm, self.slice_shape, self.pixel_mm)
