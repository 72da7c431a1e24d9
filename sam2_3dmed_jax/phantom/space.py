"""Points of a scan within a person: fields of the torso, index boxes, and layers of simple shapes.

The torso is a squircle in cross-section; the abdomen ends at a diaphragm of two domes, steep at the wall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.phantom.anatomy import Anatomy
from sam2_3dmed_jax.phantom.shapes import Ellipsoid, IndexBox, Tube, Waves

CAVITY_Y = -10.0  # mm, y of the cavity's centre, about which angles are measured


class Layer(NamedTuple):
    """A tissue and the fraction of each voxel of `box` that it covers."""

    tissue: str
    box: IndexBox
    coverage: np.ndarray  # float32 in [0, 1]


class Space:
    """Points p [3, Z, H, W] float32 (x, y, z in mm), near-regular, and the fields that most organs need."""

    def __init__(self, anatomy: Anatomy, p: np.ndarray, pixel: float) -> None:
        self.p, self.pixel = p, pixel
        # Pose and warp are small, so axis-wise extremes give tight index boxes.
        self._low = [p[a].min(axis=tuple(i for i in range(3) if i != 2 - a)) for a in range(3)]
        self._high = [p[a].max(axis=tuple(i for i in range(3) if i != 2 - a)) for a in range(3)]
        t = anatomy.torso
        x, y, z = p
        self.theta = np.arctan2(y - CAVITY_Y, x)
        rho = np.sqrt(x * x + (y - CAVITY_Y) ** 2) + np.float32(1e-3)
        waves = coarse(t.skin_waves, p)
        self.skin = _squircle(x / t.half_width, y / t.half_depth, 1.5, np.sqrt(x * x + y * y)) + waves
        half_y = np.where(y < CAVITY_Y, CAVITY_Y - t.cavity_front, t.cavity_back - CAVITY_Y).astype(np.float32)
        apex = np.clip((z - 170 * t.height_scale) / (132 * t.height_scale), 0, 0.999)
        narrow = np.sqrt(1 - apex * apex)
        u, v = x / (t.cavity_half_width * narrow), (y - CAVITY_Y) / (half_y * narrow)
        self.cavity = _squircle(u, v, 1.3, rho) + coarse(t.wall_waves, p)
        # Diaphragm: two domes, steep at the wall, so that the lungs end in thin recesses next to liver and spleen.
        right = 0.5 - 0.5 * np.clip(x / 60, -1, 1)
        top = t.dome_left + (t.dome_right - t.dome_left) * right + coarse(t.dome_waves, p)
        side = np.abs(np.where(x >= 0, self.theta, np.pi - np.abs(self.theta)))
        low = t.recess + np.where(y < CAVITY_Y, 42 * side, 4 * (1 - side)).astype(np.float32)
        s = 1 - np.clip(-self.cavity / 66, 0, 1)
        slope = 3 * (top - low) / 66 * s * s
        self.diaphragm = (z - (top - (top - low) * s**3)) / np.sqrt(1 + slope * slope)
        self.abdomen = np.maximum(self.cavity, self.diaphragm)

    def box(self, reach: tuple[np.ndarray, np.ndarray]) -> IndexBox | None:
        """Return the index box of the points within the mm box `reach`, or None without such points."""
        slices = []
        for a in (2, 1, 0):
            inside = np.flatnonzero((self._high[a] >= reach[0][a]) & (self._low[a] <= reach[1][a]))
            if not len(inside):
                return None
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
        return slices[0], slices[1], slices[2]

    @property
    def full(self) -> IndexBox:
        """The index box of all points."""
        _, depth, height, width = self.p.shape
        return slice(0, depth), slice(0, height), slice(0, width)

    def cover(self, field: np.ndarray) -> np.ndarray:
        """Return the fraction of a voxel on the negative side of a field in mm."""
        return np.clip(np.float32(0.5) - field * np.float32(1 / self.pixel), 0, 1)


def coarse(waves: Waves, p: np.ndarray, step: int = 4) -> np.ndarray:
    """Evaluate long waves on every `step`-th point and interpolate linearly: ten times faster than on every point."""
    values = waves(np.ascontiguousarray(p[:, :, ::step, ::step]))
    for axis in (1, 2):
        values = _stretch(values, axis, p.shape[axis + 1], step)
    return values


def _stretch(values: np.ndarray, axis: int, size: int, step: int) -> np.ndarray:
    i = np.arange(size) // step
    j = np.minimum(i + 1, values.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = size
    w = ((np.arange(size) % step) / step).astype(np.float32).reshape(shape)
    return np.take(values, i, axis) * (1 - w) + np.take(values, j, axis) * w


def _squircle(u: np.ndarray, v: np.ndarray, mix: float, rho: np.ndarray) -> np.ndarray:
    """Return the radial distance in mm to the curve u^4 + mix u^2 v^2 + v^4 = 1 (mix 2 is an ellipse)."""
    u, v = u * u, v * v
    r = np.sqrt(np.sqrt(u * u + np.float32(mix) * u * v + v * v)) + np.float32(1e-4)
    return rho * (1 - 1 / r)


def simple_layers(
    space: Space,
    tissue: str,
    shapes: Sequence[Ellipsoid | Tube],
    limit: np.ndarray | None = None,
    fat: np.ndarray | None = None,
) -> Iterator[Layer]:
    """Yield layers of shapes of one tissue.

    Args:
        space: The points.
        tissue: The tissue's name.
        shapes: Painted in this order.
        limit: A field [Z, H, W] in mm to intersect each shape with.
        fat: Thickness [Z, H, W] in mm of a plane of fat around each shape; no fat where negative.

    Yields:
        One layer per shape that contains points, preceded by a layer of fat if `fat` is given.
    """
    for shape in shapes:
        box = space.box(shape.reach)
        if box is None:
            continue
        d = tube_field(space, shape, box) if isinstance(shape, Tube) else shape.field(space.p[(slice(None), *box)])
        if limit is not None:
            d = np.maximum(d, limit[box])
        if fat is not None:
            yield Layer("fat", box, space.cover(np.maximum(d - fat[box], space.abdomen[box])))
        yield Layer(tissue, box, space.cover(d))


def tube_field(space: Space, tube: Tube, box: IndexBox) -> np.ndarray:
    """Return the field in mm of a tube on `box`; each cone is evaluated only near itself, and far points are 99."""
    d = np.full([s.stop - s.start for s in box], 99, np.float32)
    for cone in tube.segments():
        part = space.box(cone.reach)
        if part is not None:
            at = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(part, box, strict=True))
            d[at] = np.minimum(d[at], cone.field(space.p[(slice(None), *part)]))
    return d
