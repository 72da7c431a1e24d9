"""Implicit shapes: fields that are negative inside and close to a distance in mm, evaluated on given points.

Ellipsoids use the first-order distance of I. Quilez (k0 (k0 - 1) / k1); tubes are round cones along a spline.
Surfaces are made irregular by adding a few long random waves to a field or to the coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

IndexBox = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Waves:
    """A smooth random function of space with mean 0 and a given SD: a sum of plane waves."""

    vectors: np.ndarray  # [n, 3], radians per mm
    phases: np.ndarray  # [n], radians
    amplitude: float  # SD, in the unit of the value (mm for shapes)

    @classmethod
    def draw(cls, rng: np.random.Generator, amplitude: float, wavelength: float, n: int = 4) -> Waves:
        """Draw random directions and phases; wavelengths are between 0.75 and 1.5 times `wavelength` mm."""
        directions = rng.normal(size=(n, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength * rng.uniform(0.75, 1.5, size=(n, 1))
        return cls(2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, n), amplitude)

    def __call__(self, p: np.ndarray) -> np.ndarray:
        """Values [...] float32 at points p [3, ...] in mm."""
        total = np.zeros(p.shape[1:], np.float32)
        for (kx, ky, kz), phase in zip(self.vectors.astype(np.float32), self.phases.astype(np.float32), strict=True):
            total += np.cos(kx * p[0] + ky * p[1] + kz * p[2] + phase)
        return total * np.float32(self.amplitude * np.sqrt(2 / len(self.phases)))


@dataclass(frozen=True)
class Ellipsoid:
    """A rotated ellipsoid whose surface may be displaced by waves."""

    centre: np.ndarray  # [3], mm
    radii: np.ndarray  # [3], mm
    rotation: np.ndarray  # [3, 3], columns are its axes
    waves: Waves | None = None

    @property
    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners [3], [3] of a box in mm that holds the shape."""
        half = np.sqrt((self.rotation**2) @ (np.asarray(self.radii) ** 2)) + 4
        if self.waves is not None:
            half = half + 3 * self.waves.amplitude
        return self.centre - half, self.centre + half

    def field(self, p: np.ndarray) -> np.ndarray:
        """Signed field [...] in mm at points p [3, ...]."""
        r = np.asarray(self.radii, np.float32)
        q = np.tensordot(self.rotation.T.astype(np.float32), p, axes=1)
        q -= (self.rotation.T @ self.centre).astype(np.float32).reshape(3, *[1] * (p.ndim - 1))
        q /= r.reshape(3, *[1] * (p.ndim - 1))
        k0 = np.sqrt(np.einsum("i...,i...->...", q, q))
        q /= r.reshape(3, *[1] * (p.ndim - 1))
        k1 = np.sqrt(np.einsum("i...,i...->...", q, q)) + np.float32(1e-6)
        d = k0 * (k0 - 1) / k1
        return d if self.waves is None else d + self.waves(p)


@dataclass(frozen=True)
class Tube:
    """Round cones along a polyline (usually a sampled spline)."""

    points: np.ndarray  # [n, 3], mm
    radii: np.ndarray  # [n], mm

    @classmethod
    def along(cls, knots: npt.ArrayLike, radii: npt.ArrayLike, samples: int = 16) -> Tube:
        """Return a natural cubic spline through `knots` [k, 3] mm with `radii` mm spread evenly over its length."""
        at, thickness = np.asarray(knots, float), np.asarray(radii, float)
        t = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(at, axis=0), axis=1))])
        s = np.linspace(0, t[-1], samples)
        points = CubicSpline(t, at, bc_type="natural")(s)
        return cls(points, np.interp(s, np.linspace(0, t[-1], len(thickness)), thickness))

    @property
    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners [3], [3] of a box in mm that holds the shape."""
        return (self.points - self.radii[:, None]).min(0) - 4, (self.points + self.radii[:, None]).max(0) + 4

    def grown(self, mm: float) -> Tube:
        """Return the same path with radii larger by `mm`."""
        return Tube(self.points, self.radii + mm)

    def segments(self) -> Iterator[Tube]:
        """Yield the cones one by one, so that each is evaluated in its own small box."""
        for i in range(len(self.radii) - 1):
            yield Tube(self.points[i : i + 2], self.radii[i : i + 2])

    def field(self, p: np.ndarray) -> np.ndarray:
        """Signed field [...] in mm at points p [3, ...]: the minimum over the cones."""
        best: np.ndarray | None = None
        for a, b, ra, rb in zip(self.points[:-1], self.points[1:], self.radii[:-1], self.radii[1:], strict=True):
            axis = (b - a).astype(np.float32)
            q = p - a.astype(np.float32).reshape(3, *[1] * (p.ndim - 1))
            t = np.clip(np.tensordot(axis, q, axes=1) / np.float32(max(axis @ axis, 1e-6)), 0, 1)
            for i in range(3):
                q[i] -= t * axis[i]
            d = np.sqrt(np.einsum("i...,i...->...", q, q)) - (np.float32(ra) + t * np.float32(rb - ra))
            best = d if best is None else np.minimum(best, d)
        assert best is not None
        return best


def smooth_union(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Return the union of two fields with a fillet about `width` mm wide (polynomial smooth minimum)."""
    h = np.maximum(width - np.abs(a - b), 0) / np.float32(width)
    return np.minimum(a, b) - h * h * np.float32(width / 4)


def rotation(rng: np.random.Generator, degrees: float | Sequence[float]) -> np.ndarray:
    """Return a random rotation [3, 3]: angles about x, y, z uniform within +-`degrees`."""
    return euler(*(np.asarray(degrees) * rng.uniform(-1, 1, 3)))


def euler(about_x: float, about_y: float, about_z: float) -> np.ndarray:
    """Return the rotation [3, 3] about x, then y, then z, in degrees."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((about_x, about_y, about_z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i], step[j, j], step[i, j], step[j, i] = c, c, -s, s
        matrix = step @ matrix
    return matrix
