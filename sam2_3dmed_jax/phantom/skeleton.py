"""Spine, ribs and sternum. An axial slice cuts each rib obliquely, so that ribs appear as short pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sam2_3dmed_jax.phantom.anatomy import Anatomy
from sam2_3dmed_jax.phantom.shapes import Ellipsoid
from sam2_3dmed_jax.phantom.space import Layer, Space, simple_layers


def bones(a: Anatomy, space: Space) -> Iterator[Layer]:
    """Yield layers of the skeleton, and the fat around the muscles next to the spine."""
    yield from _ribs(a, space)
    box = space.box((a.spine.reach[0] - [60, 20, 0], a.spine.reach[1] + [60, 60, 0]))
    if box is None:
        return
    p = space.p[(slice(None), *box)]
    x, z = p[0], p[2]
    order = np.argsort(a.spine.points[:, 2])
    knots = a.spine.points[order]
    x0 = np.interp(z, knots[:, 2], knots[:, 0]).astype(np.float32)
    y0 = np.interp(z, knots[:, 2], knots[:, 1]).astype(np.float32)
    r = np.interp(z, knots[:, 2], a.spine.radii[order]).astype(np.float32)
    dx, dy = x - x0, p[1] - y0
    period = 29 * a.torso.height_scale
    phase = np.abs((z + a.torso.rib_phase) / period - np.round((z + a.torso.rib_phase) / period))  # 0.5 at a disc
    body = (np.sqrt((dx / 1.15) ** 2 + dy * dy) / r - 1) * r * 0.95 + 2 * np.cos(2 * np.pi * phase)
    behind = dy - r - 8
    canal = np.sqrt(dx * dx + behind * behind) - 8
    arch = np.maximum(np.abs(canal - 3) - 3, -behind - 8)
    spinous = np.maximum(np.abs(dx) - 3, np.abs(behind - 24) - 16 + 22 * np.clip(phase - 0.25, 0, 1))
    transverse = np.maximum(np.maximum(np.abs(behind - 2) - 5, np.abs(dx) - 36), (phase - 0.22) * 40)
    for side in (-1, 1):  # fat around the erector spinae makes them visible
        muscle = np.sqrt((dx - side * 33) ** 2 + (1.25 * (behind - 16)) ** 2) - 25
        shell = np.maximum(np.abs(muscle) - 0.8, space.skin[box] + np.float32(a.torso.fat + 2))
        yield Layer("fat", box, space.cover(np.maximum(shell, -space.cavity[box] + 3)))
    hard = np.minimum(np.minimum(arch, spinous), transverse)
    yield Layer("cortical", box, space.cover(hard))
    yield Layer("cortical", box, space.cover(body))
    yield Layer("cancellous", box, space.cover(body + 2.5))
    yield Layer("disc", box, space.cover(np.maximum(body + 1, (0.42 - phase) * np.float32(period))))
    yield Layer("canal", box, space.cover(canal))


def _ribs(a: Anatomy, space: Space) -> Iterator[Layer]:
    """Yield twelve pairs of arcs in the wall that descend from spine to front; an axial slice cuts several of them."""
    t = a.torso
    band = np.abs(space.cavity - 5) < 9
    d = space.cavity[band] - 5
    phi = np.abs(space.theta[band] - np.float32(np.pi / 2))
    phi = np.minimum(phi, 2 * np.float32(np.pi) - phi)  # 0 at the spine, pi at the sternum
    period = 25 * t.height_scale
    height = (space.p[2][band] + 26 * phi * t.height_scale - 24 - t.rib_phase) / period
    number = np.clip(np.round(height), 0, 11)
    end = np.array([0.9, 1.3, 1.9, 2.1, 2.3] + [2.45] * 7, np.float32)[number.astype(int)]
    dz = (height - number) * np.float32(period)
    field = (np.sqrt((dz / 6.5) ** 2 + (d / 4) ** 2) - 1) * 4.5
    field = np.maximum(field, (phi - end) * 90)
    full = space.full
    for tissue, inset in (("cortical", 0.0), ("cancellous", 2.0)):
        coverage = np.zeros(band.shape, np.float32)
        coverage[band] = space.cover(field + inset)
        yield Layer(tissue, full, coverage)
    sternum = Ellipsoid(np.array([0, t.cavity_front - 6, 165 * t.height_scale]), np.array([17, 6, 80]), np.eye(3))
    yield from simple_layers(space, "cancellous", [sternum])
