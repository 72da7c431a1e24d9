"""Resampling of a case to another spacing: linear for values, and the strongest interpolated label for labels.

The field of view keeps its centre, so physical positions are preserved, and the spacing is exactly as requested. Where
new voxels are larger by a factor s, a value is the mean of the interpolation over s - 1 old voxels. This avoids
aliasing of noise and, unlike a widened triangle filter, keeps linear ramps exact. Outside the volume the nearest voxel
is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.errors import UserError

Spacing = tuple[float | None, float | None, float | None]  # (dz, dy, dx), mm; None keeps an axis
_MOST_BYTES = 2 * 2**30  # limit of the result as float32; with labels four times as much memory is needed
_ROUNDING = 1e-5  # rounding error of sums of weights


def parse_spacing(text: str) -> Spacing:
    """Read "dz,dy,dx" in mm; `0` or `-` keeps an axis.

    Raises:
        UserError: not three such values.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        values = [None if part in ("-", "0") else float(part) for part in parts]
        dz, dy, dx = (value or None for value in values)
        if not all(value is None or (value > 0 and math.isfinite(value)) for value in (dz, dy, dx)):
            raise ValueError
    except ValueError:
        raise UserError(
            f"'{text}' is not a spacing; give dz,dy,dx in mm, 0 or - to keep an axis, such as 5,-,-"
        ) from None
    return dz, dy, dx


@dataclass(frozen=True, eq=False)
class Regrid:
    """Mapping between the voxels of a case and the requested voxels.

    Attributes:
        shape: (D, H, W) of the result, whose extent is as close to the old one as whole voxels allow.
        step: old voxels per new voxel along each axis; exactly 1 for an axis that is kept.
        affine: `[4, 4]`, new index (d, h, w, 1) to RAS millimetres.
    """

    shape: tuple[int, int, int]
    step: tuple[float, float, float]
    affine: np.ndarray

    def back(self, shape: tuple[int, int, int], affine: np.ndarray) -> Regrid:
        """Return the mapping back to the original voxels, with this shape and affine; both grids share their centre."""
        z, y, x = self.step
        return Regrid(shape, (1 / z, 1 / y, 1 / x), affine)


def regrid(shape: tuple[int, int, int], affine: np.ndarray, wanted: Spacing, name: str = "the case") -> Regrid:
    """Plan the resampling of a case.

    Args:
        shape: (D, H, W).
        affine: `[4, 4]`, index (d, h, w, 1) to RAS millimetres.
        wanted: requested spacing, mm along each axis.
        name: name of the case in the error message.

    Raises:
        UserError: the result would be larger than a volume may be.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    sz, sy, sx = (1.0 if mm is None or _same(mm, own) else mm / own for mm, own in zip(wanted, spacing, strict=True))
    step = (sz, sy, sx)
    d, h, w = (max(1, round(n / s)) for n, s in zip(shape, step, strict=True))
    if 4 * d * h * w > _MOST_BYTES:
        raise UserError(
            f"{name} would have {d} x {h} x {w} voxels at the spacing asked for, expected at most "
            f"{_MOST_BYTES // 2**30} GiB as float32: ask for a coarser one"
        )
    change = np.diag([*step, 1.0])
    change[:3, 3] = [_first(n, m, s) for n, m, s in zip(shape, (d, h, w), step, strict=True)]
    return Regrid((d, h, w), step, affine @ change)


def resample_values(values: np.ndarray, plan: Regrid) -> np.ndarray:
    """Resample float32 `[D, H, W]` to the new grid by linear interpolation."""
    for axis, matrix in enumerate(_matrices(values.shape, plan)):
        if matrix is not None:
            values = _along(axis, matrix, values)
    return values


def resample_labels(labels: np.ndarray, plan: Regrid) -> np.ndarray:
    """Resample labels uint8 `[D, H, W]` to the new grid.

    A voxel gets the label, or background, whose mask is strongest there after linear interpolation; a tie goes to a
    label. The cost of each label is bounded by its bounding box.
    """
    matrices = _matrices(labels.shape, plan)
    background = np.ones(plan.shape, np.float32)
    best, out = np.zeros(plan.shape, np.float32), np.zeros(plan.shape, np.uint8)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        filled = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        box = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in filled)
        weight = mask[box].astype(np.float32)
        target = list(box)
        for axis, matrix in enumerate(matrices):
            if matrix is not None:
                reached = np.flatnonzero(matrix[:, box[axis]].any(axis=1))
                target[axis] = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
                weight = _along(axis, matrix[target[axis], box[axis]], weight)
        where = tuple(target)
        background[where] -= weight
        stronger = weight > best[where]
        best[where][stronger] = weight[stronger]
        out[where][stronger] = value
    out[background - best > _ROUNDING] = 0
    return out


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-5 * other  # headers store float32


def _first(n: int, m: int, step: float) -> float:
    """Return the old index of the first new voxel; both grids share their centre."""
    return (n - 1) / 2 - (m - 1) / 2 * step


def _matrices(shape: Sequence[int], plan: Regrid) -> list[np.ndarray | None]:
    """Return the interpolation of each axis as a matrix `[m, n]` float32 whose rows sum to 1; None keeps the axis."""
    return [
        None if step == 1.0 else _matrix(n, m, step) for n, m, step in zip(shape, plan.shape, plan.step, strict=True)
    ]


def _matrix(n: int, m: int, step: float) -> np.ndarray:
    centres = _first(n, m, step) + step * np.arange(m)
    beyond = math.ceil(max(-centres[0], centres[-1] - (n - 1), 0.0) + step) + 1
    old = np.arange(-beyond, n + beyond)
    distance, half = centres[:, None] - old, max(step - 1.0, 0.0) / 2
    if half:
        weights = (_area(distance + half) - _area(distance - half)) / (2 * half)
    else:
        weights = np.maximum(0.0, 1.0 - np.abs(distance))
    inside = np.zeros((n, m))
    np.add.at(inside, np.clip(old, 0, n - 1), weights.T)
    return inside.T.astype(np.float32)


def _area(x: np.ndarray) -> np.ndarray:
    """Return the integral of the weight of linear interpolation, max(0, 1 - |t|), over t from -1 to x."""
    x = np.clip(x, -1.0, 1.0)
    return np.asarray(0.5 + x - 0.5 * x * np.abs(x))


def _along(axis: int, matrix: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Apply the matrix to one axis of `array`."""
    if axis == 2:
        return np.asarray(np.matmul(array, matrix.T))
    if axis == 1:
        return np.asarray(np.matmul(matrix, array))
    d, h, w = array.shape
    return np.asarray(np.matmul(matrix, array.reshape(d, h * w))).reshape(-1, h, w)
