"""Voxel grids: reordering between a file's axes and axial slices `[D, H, W]`, without resampling.

Canonical order: axis 0 inferior to superior, axis 1 (rows) anterior to posterior, axis 2 (columns) patient right
to left. Oblique and sheared axes are assigned to the nearest anatomical axis; voxels are reordered, never interpolated.

The canonical order of a file is its own. A second file on the same grid is brought into the frame of the first one
(`to_frame_of`): at 45 degrees rounding decides the nearest axis, so that the canonical orders of the two may differ.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from nibabel import orientations

from sam2_3dmed_jax.errors import UserError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM and ITK count to the left and posterior
_CANONICAL = orientations.axcodes2ornt(("S", "P", "L"))
# Volume of the unit voxel after scaling its edges to length 1: 1 when orthogonal, 0 when the edges are coplanar.
_SINGULAR = 1e-6
_SHORTEST_MM, _LONGEST_MM = (
    1e-9,
    1e9,
)  # of an edge of a voxel and of a position; beyond, sums and squares lose all digits

# Two grids are the same if no corner of a voxel moves by more than this, in mm: a hundredth of a fine voxel. It is ten
# times the rounding of an origin to three decimals, and more than that of float32 affines and of directions with six.
GRID_TOLERANCE_MM = 0.01
_DIRECTION_DECIMALS = 4  # of the cosines that choose the canonical order, so that rounding in files does not choose it
_IDENTITY = np.array([[0, 1], [1, 1], [2, 1]])
_IDENTITY.flags.writeable = False

NEIGHBOURS_26 = np.ones((3, 3, 3), bool)  # voxels that share a corner belong to one connected component


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a file, in the file's own axis order.

    Attributes:
        shape: voxels along the file's axes (i, j, k).
        affine: `[4, 4]` float64, voxel index (i, j, k, 1) to RAS millimetres.
        source: the file, for error messages.
        nifti_fields: geometry fields of the NIfTI header as stored, written back bit for bit; empty if not from NIfTI.
        nifti_version: 1 or 2; version 2 stores the affine in float64.
        is_canonical: the axes of the file are (d, h, w) already, as for a grid that was made from another one; without
            it, they could be assigned again in another way where two directions are equally near.

    Raises:
        UserError: the affine is singular or not finite, its voxels or position are no lengths of a body, or an axis is
            empty.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    source: str = ""
    nifti_fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    nifti_version: int = 1
    is_canonical: bool = False

    def __post_init__(self) -> None:
        """Copy the affine, so that it cannot be changed from outside, and check it."""
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        name = self.source or "the image"
        if affine.shape != (4, 4) or len(shape) != 3:
            raise ValueError(f"expected three axes and a 4 x 4 affine, found {shape} and {affine.shape}")
        if min(shape) < 1:
            raise UserError(f"{name} has no voxels: its shape is {shape}, expected at least 1 along each axis")
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(affine[:3, :3], axis=0)
            bounded = bool((lengths >= _SHORTEST_MM).all() and (np.abs(affine) <= _LONGEST_MM).all())  # NaN is not
            regular = bounded and abs(np.linalg.det(affine[:3, :3] / lengths)) > _SINGULAR
        if not regular:
            raise UserError(
                f"{name} has a singular affine {affine[:3].tolist()}, expected three independent axes: "
                "repair its sform or qform, for example by converting from DICOM again"
            )
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @functools.cached_property  # read for each click and each slice
    def transform(self) -> np.ndarray:
        """`[3, 2]` int: for each file axis its canonical axis (0 D, 1 H, 2 W) and direction (1, or -1 if flipped)."""
        if self.is_canonical:
            return _IDENTITY
        left, _, right = np.linalg.svd(self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0))
        rotation = np.eye(4)
        rotation[:3, :3] = np.round(left @ right, _DIRECTION_DECIMALS) + 0.0  # the sum turns -0.0 into 0.0
        transform = orientations.ornt_transform(orientations.io_orientation(rotation), _CANONICAL).astype(int)
        transform.flags.writeable = False
        return np.asarray(transform)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        d, h, w = (self.shape[axis] for axis in np.argsort(self.transform[:, 0]))
        return d, h, w

    @property
    def canonical_affine(self) -> np.ndarray:
        """`[4, 4]` float64: canonical index (d, h, w, 1) to RAS millimetres."""
        return np.asarray(self.affine @ orientations.inv_ornt_aff(self.transform, self.shape))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(dz, dy, dx) in mm: the lengths of the canonical affine's columns."""
        dz, dy, dx = np.linalg.norm(self.canonical_affine[:3, :3], axis=0).tolist()
        return dz, dy, dx

    @property
    def voxel_volume_ml(self) -> float:
        """Millilitres per voxel: |det affine|, which is correct on a sheared grid too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as axial slices.

    Attributes:
        array: `[D, H, W]` float32, HU if CT, in canonical order.
        grid: the grid of its file; gives the file order, the spacing and millimetres.
        modality: DICOM's Modality; CT for files without one, unless the caller passed another.
    """

    array: np.ndarray
    grid: Grid
    modality: str = "CT"

    def __post_init__(self) -> None:
        """Check that the array has the shape of the grid."""
        if self.array.shape != self.grid.canonical_shape:
            raise ValueError(f"array {self.array.shape} on a grid of {self.grid.canonical_shape} (D, H, W)")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(dz, dy, dx) in mm."""
        return self.grid.spacing

    @property
    def canonical_affine(self) -> np.ndarray:
        """`[4, 4]` float64: index (d, h, w, 1) to RAS millimetres."""
        return self.grid.canonical_affine

    @property
    def voxel_volume_ml(self) -> float:
        """Millilitres per voxel."""
        return self.grid.voxel_volume_ml


def to_canonical(array_ijk: np.ndarray, grid: Grid) -> np.ndarray:
    """Reorder and flip axes from file order `[i, j, k]` to `[D, H, W]`; a view of the input, any dtype."""
    if array_ijk.shape != grid.shape:
        raise ValueError(f"array {array_ijk.shape} on a grid of {grid.shape} (i, j, k)")
    return np.asarray(orientations.apply_orientation(array_ijk, grid.transform))


def from_canonical(array_dhw: np.ndarray, grid: Grid) -> np.ndarray:
    """Invert `to_canonical`: from `[D, H, W]` to file order `[i, j, k]`; a view, any dtype."""
    if array_dhw.shape != grid.canonical_shape:
        raise ValueError(f"array {array_dhw.shape} on a grid of {grid.canonical_shape} (D, H, W)")
    back = np.empty((3, 2), int)
    for axis, (target, direction) in enumerate(grid.transform):
        back[target] = axis, direction
    return np.asarray(orientations.apply_orientation(array_dhw, back))


def to_frame_of(image: Grid, array_dhw: np.ndarray, grid: Grid) -> np.ndarray:
    """Bring an array on the same grid as an image into the canonical order of the image.

    Args:
        image: the grid of the image.
        array_dhw: `[D, H, W]` in the canonical order of `grid`, any dtype.
        grid: the same grid, with its axes stored in any order and direction.

    Returns:
        `[D, H, W]` in the canonical order of the image; a view of the input if both orders are the same.

    Raises:
        UserError: as `check_same_grid`.
    """
    axes = _matching_axes(grid, image)
    stored = orientations.apply_orientation(from_canonical(array_dhw, grid), axes)
    return np.asarray(orientations.apply_orientation(stored, image.transform))


def largest_displacement_mm(shape: tuple[int, int, int], affine: np.ndarray, other: np.ndarray) -> float:
    """Return the largest distance in mm between a corner of a voxel at one affine and at another one."""
    corners = list(itertools.product(*((-0.5, length - 0.5) for length in shape)))
    return displacement_mm(np.array(corners), affine, other)


def displacement_mm(places: np.ndarray, affine: np.ndarray, other: np.ndarray) -> float:
    """Return the largest distance in mm between places `[n, 3]`, in voxel indices, at one affine and at another one."""
    change = affine - other
    return float(np.linalg.norm(places @ change[:3, :3].T + change[:3, 3], axis=1).max())


def voxel_to_canonical(grid: Grid, voxel: Sequence[float]) -> tuple[float, float, float]:
    """Convert a voxel index of the file to a canonical index.

    Args:
        grid: the file's grid.
        voxel: (x, y, z), the index along the file's axes i, j, k; fractions are allowed.

    Returns:
        (d, h, w), exact (integers stay integers in value).

    Raises:
        UserError: a coordinate is outside the volume (more than half a voxel beyond a voxel centre).
    """
    _check_inside(voxel, grid.shape, "xyz", grid.source)
    canonical = [0.0, 0.0, 0.0]
    for value, length, (target, direction) in zip(voxel, grid.shape, grid.transform, strict=True):
        canonical[target] = float(value) if direction > 0 else length - 1 - float(value)
    return canonical[0], canonical[1], canonical[2]


def canonical_to_voxel(grid: Grid, canonical: Sequence[float]) -> tuple[float, float, float]:
    """Invert `voxel_to_canonical`: from a canonical index (d, h, w) to the voxel (x, y, z) of the file, exactly."""
    x, y, z = (
        float(canonical[target]) if direction > 0 else length - 1 - float(canonical[target])
        for length, (target, direction) in zip(grid.shape, grid.transform, strict=True)
    )
    return x, y, z


def plane_in_file(grid: Grid, axis: int, index: int) -> tuple[str, int]:
    """Return the file axis ("i", "j" or "k") that a canonical axis is stored along, and the file's index of a plane."""
    ((file_axis, (_, direction)),) = (
        (place, row) for place, row in enumerate(grid.transform.tolist()) if row[0] == axis
    )
    return "ijk"[file_axis], index if direction > 0 else grid.shape[file_axis] - 1 - index


def check_same_grid(labels: Grid, image: Grid) -> None:
    """Check that two files have the same voxel grid; their axes may be stored in another order or direction.

    Raises:
        UserError: the shapes differ, or a corner of a voxel is displaced by more than `GRID_TOLERANCE_MM`.
    """
    _matching_axes(labels, image)


def _matching_axes(labels: Grid, image: Grid) -> np.ndarray:
    """Return the order and directions of axes in which one file has the voxels of another one.

    All 48 ways to reorder and flip three axes are compared, because the directions of both files are rounded.

    Returns:
        `[3, 2]` int: for each axis of the labels' file the axis of the image's file, and 1, or -1 if it is flipped.

    Raises:
        UserError: as `check_same_grid`.
    """
    best, axes = np.inf, _IDENTITY
    for order in itertools.permutations(range(3)):
        if any(image.shape[target] != length for target, length in zip(order, labels.shape, strict=True)):
            continue
        for signs in itertools.product((1, -1), repeat=3):
            candidate = np.array([order, signs]).T
            reordered = labels.affine @ orientations.inv_ornt_aff(candidate, labels.shape)
            displacement = largest_displacement_mm(image.shape, reordered, image.affine)
            if displacement < best:
                best, axes = displacement, candidate
    if best <= GRID_TOLERANCE_MM:
        return axes
    names = f"{labels.source or 'the label map'} is not on the grid of {image.source or 'the image'}"
    fix = "resample the labels onto the image's grid"
    # At 45 degrees canonical shapes may differ by rounding, so they are not the reason for less than a voxel.
    if not np.isfinite(best) or (
        labels.canonical_shape != image.canonical_shape and best > np.linalg.norm(image.spacing)
    ):
        shapes = f"{labels.canonical_shape} and {image.canonical_shape}"
        raise UserError(f"{names}: their shapes (D, H, W) are {shapes}: {fix}")
    raise UserError(
        f"{names}: their affines differ by up to {best:.3g} mm at the corners, expected at most {GRID_TOLERANCE_MM:g} "
        f"mm: {fix}"
    )


def _check_inside(index: Sequence[float], shape: tuple[int, int, int], names: str, source: str) -> None:
    """Accept fractions up to the border of the outermost voxel, half a voxel from its centre; refuse NaN."""
    if len(index) != 3:
        raise UserError(f"a voxel has three coordinates ({', '.join(names)}), found {len(index)}: give all three")
    for value, length, name in zip(index, shape, names, strict=True):
        if not -0.5 <= value <= length - 0.5:
            raise UserError(
                f"voxel {name} = {value:g} is outside {source or 'the image'}: expected {name} from 0 to {length - 1}"
            )
