"""Voxel grid of the browser page: the image's voxels in the order right, anterior, superior.

The viewer reorders the axes of a file by rules of its own, and reports voxels in that order. The page therefore gets
each image in an order that the viewer leaves alone, on a grid with a diagonal affine: x from left to right, y from
posterior to anterior, z from inferior to superior. Voxels are reordered, never interpolated, so that voxels of the page
and of the file correspond exactly, for oblique and sheared images too.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from sam2_3dmed_jax.volume.geometry import (
    Grid,
    Volume,
    canonical_to_voxel,
    from_canonical,
    plane_in_file,
    to_canonical,
    voxel_to_canonical,
)
from sam2_3dmed_jax.volume.modality import CT

Triple = tuple[float, float, float]


class DisplayGrid:
    """Converts between voxels of the page (x, y, z) and voxels of an image file (i, j, k)."""

    def __init__(self, grid: Grid):
        """Describe the page's grid of an image.

        Args:
            grid: of the image file.
        """
        self._grid = grid
        self._depth, self._height, self._width = grid.canonical_shape

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (x, y, z) of the page."""
        return self._width, self._height, self._depth

    @property
    def spacing(self) -> Triple:
        """Millimetres along (x, y, z) of the page."""
        dz, dy, dx = self._grid.spacing
        return dx, dy, dz

    def from_slice(self, slice: int, x: float, y: float) -> Triple:
        """Return the voxel (x, y, z) of the page at a place (column, row) of a canonical slice."""
        return self._width - 1 - x, self._height - 1 - y, float(slice)

    def slice_in_file(self, z: int) -> int:
        """Return the index, along the axis of the file that slices are counted along, of the slice z of the page."""
        return plane_in_file(self._grid, 0, z)[1]

    def to_file(self, voxel: Sequence[float]) -> Triple:
        """Return the voxel (i, j, k) of the file at a voxel (x, y, z) of the page."""
        x, y, z = voxel
        return canonical_to_voxel(self._grid, (z, self._height - 1 - y, self._width - 1 - x))

    def from_file(self, voxel: Sequence[float]) -> Triple:
        """Return the voxel (x, y, z) of the page at a voxel (i, j, k) of the file.

        Raises:
            UserError: the voxel is outside of the image.
        """
        d, h, w = voxel_to_canonical(self._grid, voxel)
        return self._width - 1 - w, self._height - 1 - h, d

    def slice_of_page(self, mask: np.ndarray, slice_axis: int, index: int) -> tuple[int, np.ndarray]:
        """Return the place and the voxels of a slice on the page.

        Args:
            mask: bool, the two other axes of the file in their order.
            slice_axis: the axis of the file that slices are counted along.
            index: of the slice along it.

        Returns:
            z, and bool `[y, x]`.
        """
        place = [0.0, 0.0, 0.0]
        place[slice_axis] = float(index)
        z = int(self.from_file(place)[2])
        repeated = np.broadcast_to(np.expand_dims(mask, slice_axis), self._grid.shape)
        return z, to_canonical(repeated, self._grid)[z, ::-1, ::-1]

    def volume_of_file(self, slices: dict[int, np.ndarray]) -> np.ndarray:
        """Return slices of the page as an array on the grid of the file.

        Args:
            slices: bool `[y, x]` by z; other slices are empty.

        Returns:
            uint8 `[i, j, k]`, in the memory order of canonical slices, in which `Scan` reads it.
        """
        canonical = np.zeros(self._grid.canonical_shape, np.uint8)
        for z, mask in slices.items():
            canonical[z] = mask[::-1, ::-1]
        return from_canonical(canonical, self._grid)

    def nifti(self, volume: Volume) -> bytes:
        """Return the image on the page's grid as an uncompressed NIfTI file.

        CT becomes int16, half the size, since its values are whole HU; other values stay float32.

        Args:
            volume: the image.
        """
        voxels = np.transpose(volume.array[:, ::-1, ::-1])
        if volume.modality == CT:
            voxels = np.clip(np.rint(voxels), -32768, 32767).astype(np.int16)
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = -(np.array(self.shape) - 1) / 2 * self.spacing
        image = nib.Nifti1Image(np.asarray(voxels), affine)
        image.header.set_xyzt_units("mm")
        return bytes(image.to_bytes())
