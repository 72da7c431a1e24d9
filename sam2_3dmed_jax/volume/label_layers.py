"""Label maps whose segments may overlap, and their placement on the grid of an image.

Most formats store one label per voxel and the whole grid. DICOM-SEG and segmentations of 3D Slicer may store segments
that overlap, and only the part of the image that holds something; RTSTRUCT stores contours without any grid.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import (
    GRID_TOLERANCE_MM,
    Grid,
    check_same_grid,
    displacement_mm,
    to_canonical,
    to_frame_of,
)
from sam2_3dmed_jax.volume.image_file import ImageFile, check_size

_ROUNDING = 0.05  # voxels: a part of the image reaches into another voxel only if it does so by more than this
Block = tuple[slice, slice, slice]


def mask_of_values(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return a bool mask of the voxels of a label map that have one of some values, with its shape."""
    return np.asarray(labels == values[0]) if len(values) == 1 else np.isin(labels, values)


def values_in(labels: np.ndarray) -> list[int]:
    """Return the values of a label map `[D, H, W]` except 0, in order."""
    # Most planes of most label maps are empty; `np.unique` of a whole volume takes seconds.
    return sorted({int(value) for plane in labels if plane.any() for value in np.unique(plane)} - {0})


@dataclass(frozen=True, eq=False)
class LabelLayers:
    """Label maps of one grid. Each label is in one layer; labels of different layers may overlap.

    Attributes:
        layers: `[D, H, W]` int32 each, one or more, in canonical order; 0 is background.
        source: the file, for messages.
    """

    layers: tuple[np.ndarray, ...]
    source: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W)."""
        return self.layers[0].shape

    def mask(self, values: Sequence[int]) -> np.ndarray:
        """Return a bool mask `[D, H, W]` of the voxels that have one of the labels in some layer."""
        first, *others = self.layers
        result = mask_of_values(first, values)
        for layer in others:
            result |= mask_of_values(layer, values)
        return result

    def inside(self) -> np.ndarray:
        """Return a bool mask `[D, H, W]` of the voxels that have a label in some layer."""
        return np.asarray(np.any([layer != 0 for layer in self.layers], axis=0))

    def values(self) -> list[int]:
        """Return the labels of all layers but 0, sorted."""
        return sorted({value for layer in self.layers for value in values_in(layer)})

    def map_layers(self, change: Callable[[np.ndarray], np.ndarray]) -> LabelLayers:
        """Return the layers after a function of a label map, such as resampling."""
        return LabelLayers(tuple(change(layer) for layer in self.layers), self.source)

    def flat(self) -> np.ndarray:
        """Return one label map.

        Raises:
            UserError: segments overlap, so that no label map holds all of them.
        """
        flat = self.layers[0]
        for layer in self.layers[1:]:
            both = (flat != 0) & (layer != 0)
            if both.any():
                first, second = int(flat[both][0]), int(layer[both][0])
                raise UserError(
                    f"{self.source or 'the label map'} has segments that overlap, {first} and {second} in "
                    f"{int(both.sum())} voxels, which one label map cannot hold here: export them without overlaps"
                )
            flat = np.where(layer != 0, layer, flat)
        return flat


@dataclass(frozen=True, eq=False)
class LabelFile:
    """A file of labels whose header was read.

    Attributes:
        path: the file.
        grid: the grid that it stores; None for contours.
        partial: it may store a part of the image's grid; what it does not store is background.
        check: raises `UserError` if the voxels that it stores are not voxels of a grid.
        read: returns its labels on a grid; raises `UserError` if they do not fit it.
        names: names of the labels, where the format stores them.
    """

    path: str
    grid: Grid | None
    partial: bool
    check: Callable[[Grid], object]
    read: Callable[[Grid], LabelLayers]
    names: Mapping[int, str] = field(default_factory=dict)


def whole_label_map(path: str | os.PathLike[str], image: ImageFile) -> LabelFile:
    """Return a file with one label per voxel, which is read on its own grid only."""

    def read(grid: Grid) -> LabelLayers:
        check_same_grid(image.grid, grid)
        labels = _integers(path, image)
        return LabelLayers((np.ascontiguousarray(to_frame_of(grid, labels, image.grid)),), str(path))

    return LabelFile(str(path), image.grid, False, functools.partial(check_same_grid, image.grid), read)


def _integers(path: str | os.PathLike[str], image: ImageFile) -> np.ndarray:
    """Return the labels of an image, int32 `[D, H, W]` in its own canonical order."""
    data = image.read(None)
    if data.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(data)
            wrong = ~(np.abs(data - rounded) <= 1e-4)  # scaled integers have rounding errors; NaN is wrong
        if wrong.any():
            value = float(data[wrong][0])
            single = np.float32(value) == value  # then the digits of a wider type would be rounding errors
            shown = np.format_float_positional(np.float32(value) if single else value, trim="-")
            raise UserError(f"{path} holds the value {shown}, expected integer labels: give a label map, or round it")
        data = rounded
    if not np.can_cast(data.dtype, np.int32):
        limits = np.iinfo(np.int32)
        # As integers: NumPy would compare float32 with the limit as float32, which is 2147483648.
        low, high = int(data.min()), int(data.max())
        if low < limits.min or high > limits.max:
            raise UserError(f"{path} holds labels from {low} to {high}, expected 32-bit integers: renumber them")
    return np.ascontiguousarray(to_canonical(data, image.grid)).astype(np.int32, copy=False)


def flat_labels(labels: np.ndarray | LabelLayers) -> np.ndarray:
    """Return one label map.

    Raises:
        UserError: segments overlap.
    """
    return labels.flat() if isinstance(labels, LabelLayers) else labels


class LayerPainter:
    """Collects segments on a grid, in as few layers as keep the segments whole."""

    def __init__(self, grid: Grid, source: str):
        self._grid = grid
        self._source = source
        self._layers: list[np.ndarray] = []  # int32, in the axis order of the grid's file

    def add(self, value: int, parts: Iterable[tuple[Block, np.ndarray]]) -> None:
        """Add a segment.

        Args:
            value: its label.
            parts: blocks of the grid, and the bool mask of the segment in each.

        Raises:
            UserError: there are so many overlapping segments that they do not fit in memory.
        """
        parts = list(parts)
        for layer in self._layers:
            if not any((layer[block][mask] != 0).any() for block, mask in parts):
                break
        else:
            check_size(self._source, (*self._grid.shape, len(self._layers) + 1))
            layer = np.zeros(self._grid.shape, np.int32)
            self._layers.append(layer)
        for block, mask in parts:
            layer[block][mask] = value

    def result(self) -> LabelLayers:
        """Return the layers; one empty layer if nothing was added."""
        layers = self._layers or [np.zeros(self._grid.shape, np.int32)]
        return LabelLayers(
            tuple(np.ascontiguousarray(to_canonical(layer, self._grid)) for layer in layers), self._source
        )


@dataclass(frozen=True, eq=False)
class Placement:
    """Position of a block of voxels on a grid whose voxels coincide with them.

    Attributes:
        axes: for each axis of the grid, the axis of the block.
        signs: for each axis of the grid, 1, or -1 if the block's axis is reversed.
        low: for each axis of the grid, its smallest index in the block; may be outside the grid.
    """

    axes: tuple[int, ...]
    signs: tuple[int, ...]
    low: tuple[int, ...]

    def place(self, block: np.ndarray, grid: Grid, source: str) -> tuple[Block, np.ndarray]:
        """Return a block of the grid and the voxels to write there.

        Raises:
            UserError: voxels that are not 0 are outside the grid.
        """
        array = block.transpose(self.axes)[tuple(slice(None, None, sign) for sign in self.signs)]
        inside = tuple(
            slice(max(0, -low), max(0, min(size, n - low)))
            for low, size, n in zip(self.low, array.shape, grid.shape, strict=True)
        )
        kept = array[inside]
        if np.count_nonzero(kept) < np.count_nonzero(array):
            raise UserError(
                f"{source} has labels outside of {grid.source or 'the image'}, expected labels of that image: give "
                "the image that was labelled"
            )
        i, j, k = (slice(low + part.start, low + part.stop) for low, part in zip(self.low, inside, strict=True))
        return (i, j, k), kept


def find_placement(affine: np.ndarray, shape: Sequence[int], grid: Grid) -> Placement | None:
    """Return where voxels lie on a grid, or None if they do not coincide with its voxels.

    Args:
        affine: `[4, 4]`, index of the voxels to RAS mm.
        shape: of the voxels.
        grid: the other grid; its extent is not considered.
    """
    change = np.linalg.inv(grid.affine) @ affine
    nearest = np.rint(change)
    rotation = nearest[:3, :3].astype(int)
    if (np.abs(rotation).sum(0) != 1).any() or (np.abs(rotation).sum(1) != 1).any():
        return None
    corners = _corners(shape)
    expected = (nearest[:3, :3] @ corners.T).T + nearest[:3, 3]
    if displacement_mm(corners, affine, grid.affine @ nearest) > GRID_TOLERANCE_MM:
        return None
    axes = np.abs(rotation).argmax(1)
    low = expected.min(0).astype(int)
    return Placement(tuple(axes.tolist()), tuple(rotation[range(3), axes].tolist()), tuple(low.tolist()))


def require_placement(source: str, affine: np.ndarray, shape: Sequence[int], grid: Grid) -> Placement:
    """Return where voxels are on a grid.

    Args:
        source: their file, for the message.
        affine: `[4, 4]`, index of the voxels to RAS mm.
        shape: of the voxels.
        grid: the other grid; its extent is not considered.

    Raises:
        UserError: the voxels do not coincide with voxels of the grid.
    """
    placement = find_placement(affine, shape, grid)
    if placement is None:
        nearest = np.rint(np.linalg.inv(grid.affine) @ affine)
        distance = displacement_mm(_corners(shape), affine, grid.affine @ nearest)
        raise UserError(
            f"{source} is not on the grid of {grid.source or 'the image'}: its voxels are up to {distance:.4g} mm away "
            f"from the image's voxels, expected at most {GRID_TOLERANCE_MM} mm: resample the labels onto the image's "
            "grid"
        )
    return placement


def _corners(shape: Sequence[int]) -> np.ndarray:
    """Return the indices of the 8 outermost voxels."""
    return np.array(list(itertools.product(*((0, n - 1) for n in shape))))


def covering_grid(first: Grid, *others: Grid) -> Grid:
    """Return the grid of `first`, extended so that it contains the voxels of the other grids.

    Raises:
        UserError: it would be larger than a volume may be.
    """
    low, high = np.zeros(3), np.array(first.shape) - 1.0
    for other in others:
        corners = _corners(other.shape)
        change = np.linalg.inv(first.affine) @ other.affine
        places = (change[:3, :3] @ corners.T).T + change[:3, 3]
        low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    start = np.floor(low + _ROUNDING)
    i, j, k = (np.ceil(high - _ROUNDING) - start + 1).astype(int).tolist()
    check_size(first.source or "the labels", (i, j, k))
    affine = first.affine.copy()
    affine[:3, 3] += first.affine[:3, :3] @ start
    return Grid((i, j, k), affine, first.source)


def grid_of_labels(files: Sequence[LabelFile], image: Grid | None = None) -> Grid:
    """Return the grid on which label files of one case are compared.

    It is the grid of the first file, if the file stores all of it; otherwise the grid of the image, of another file
    that is whole and on the same voxels, or one around all parts.

    Args:
        files: the reference first.
        image: grid of the scan, if there is one.

    Raises:
        UserError: there are contours and no whole grid.
    """
    stored = [file for file in files if file.grid]
    whole = [file.grid for file in stored if file.grid and not file.partial]
    if not files[0].partial and files[0].grid:
        return files[0].grid
    if image is not None:
        return image
    if len(stored) < len(files) and not whole:
        raise UserError(f"{files[0].path}: contours have no voxels of their own; give the scans too (--images)")
    grids = [file.grid for file in stored if file.grid]
    for grid in whole:
        if all(find_placement(other.affine, other.shape, grid) for other in grids):
            return grid
    return covering_grid(grids[0], *grids[1:])
