"""Tissues of an anatomy on a grid of points, as layers that are painted one over the other.

A signed field becomes the covered fraction of a voxel (a box filter across a flat edge), so that in-plane partial
volume needs no supersampling. Where neighbours meet, waves decide between a plane of fat and contact.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sam2_3dmed_jax.phantom.anatomy import Anatomy
from sam2_3dmed_jax.phantom.shapes import Ellipsoid, IndexBox, Tube, smooth_union
from sam2_3dmed_jax.phantom.skeleton import bones
from sam2_3dmed_jax.phantom.space import Layer, Space, coarse, simple_layers, tube_field


def layers(anatomy: Anatomy, p: np.ndarray, pixel: float) -> Iterator[Layer]:
    """Yield tissues from back to front.

    Args:
        anatomy: The person.
        p: Points [3, Z, H, W] float32, x, y, z in mm; axes run superior, posterior, left, nearly regular.
        pixel: In-plane spacing in mm, over which edges are softened.

    Yields:
        Layers; each hides the layers under it in proportion to its coverage.
    """
    space = Space(anatomy, p, pixel)
    yield from _wall(anatomy, space)
    yield from _chest(anatomy, space)
    yield from _abdomen(anatomy, space)
    yield from bones(anatomy, space)


def _wall(a: Anatomy, space: Space) -> Iterator[Layer]:
    full = space.full
    yield Layer("skin", full, space.cover(space.skin))
    yield Layer("fat", full, space.cover(space.skin + 2))
    yield Layer("muscle", full, space.cover(space.skin + np.float32(a.torso.fat)))
    yield Layer("fat", full, space.cover(space.cavity))


def _chest(a: Anatomy, space: Space) -> Iterator[Layer]:
    z_low = a.torso.recess - 30
    box = space.box((np.array([-999, -999, z_low]), np.array([999, 999, 999])))
    if box is None:
        return
    p = space.p[(slice(None), *box)]
    cavity, diaphragm = space.cavity[box], space.diaphragm[box]
    yield Layer("muscle", box, space.cover(np.maximum(cavity, np.abs(diaphragm) - 2)))
    middle = np.abs(p[0] - 4) - 24 - 8 * np.cos(p[1] / 40)
    lungs = np.maximum(np.maximum(cavity + 1.5, 2 - diaphragm), -middle)
    yield Layer("lung", box, space.cover(lungs))
    lung_full = np.full(space.p.shape[1:], 99, np.float32)
    lung_full[box] = lungs
    for tissue, box, coverage in simple_layers(space, "heart", [a.heart], limit=2 - space.diaphragm):
        yield Layer(tissue, box, coverage)
        lung_full[box] = np.maximum(lung_full[box], (coverage - 0.5) * space.pixel)
    yield from simple_layers(space, "blood", a.lung_vessels, limit=lung_full)
    yield from simple_layers(space, "nodule", a.nodules, limit=lung_full)
    for airway in a.airways:
        yield from simple_layers(space, "muscle", [airway.grown(2)])
        yield from simple_layers(space, "air", [airway])


def _spleen_field(a: Anatomy, space: Space, box: IndexBox) -> np.ndarray:
    s, (x, _, z) = a.spleen, space.p[(slice(None), *box)]
    arc = (space.theta[box] - np.float32(s.angle)) * np.float32(0.5 * (a.torso.cavity_half_width + a.torso.cavity_back))
    up, turn = z - np.float32(s.height), (np.float32(np.cos(s.tilt)), np.float32(np.sin(s.tilt)))
    q = np.stack(
        [-space.abdomen[box] - np.float32(s.depth), arc * turn[0] - up * turn[1], arc * turn[1] + up * turn[0]]
    )
    body = Ellipsoid(np.zeros(3), np.asarray(s.radii), np.eye(3)).field(q) + s.waves(space.p[(slice(None), *box)])
    # The angle is undefined near the cavity's axis, and the spleen does not reach it.
    return np.maximum(np.maximum(body, space.abdomen[box] + 2), np.float32(54 + 0.15 * s.height) - x - 0.15 * z)


def _abdomen(a: Anatomy, space: Space) -> Iterator[Layer]:
    below = space.abdomen + 2
    planes = coarse(a.planes, space.p) - np.float32(0.7)  # neighbours touch over about two thirds of their contact
    for tube in a.bowel:
        yield from _hollow(space, tube, 2.0, "bowel_wall", "bowel_content", below, planes)
    reach = (np.array([0, -60, a.spleen_z[0] - 25]), np.array([200, 120, a.spleen_z[1] + 25]))
    box = space.box(reach)
    if box is not None:
        yield Layer("spleen", box, space.cover(_spleen_field(a, space, box)))
    yield from simple_layers(space, "muscle", a.psoas)
    for kidney, sinus in zip(a.kidneys, a.sinuses, strict=True):
        yield from simple_layers(space, "kidney", [kidney], limit=below, fat=planes + 0.5)
        yield from simple_layers(space, "fat", [sinus])
    yield from _liver(a, space, below, planes)
    yield from _stomach(a, space, below, planes)
    for tube in a.colon:
        yield from _hollow(space, tube, 3.0, "colon_wall", "stool", below, planes + 1)
    yield from simple_layers(space, "artery", a.arteries)
    yield from simple_layers(space, "vein", a.veins)
    box = space.box(a.pancreas.reach)
    if box is not None:
        d = np.maximum(tube_field(space, a.pancreas, box) + a.pancreas_waves(space.p[(slice(None), *box)]), below[box])
        yield Layer("fat", box, space.cover(np.maximum(d - planes[box] - 0.5, space.abdomen[box])))
        yield Layer("pancreas", box, space.cover(d))
    yield from simple_layers(space, "tumour", [a.tumour], limit=below)


def _liver(a: Anatomy, space: Space, below: np.ndarray, planes: np.ndarray) -> Iterator[Layer]:
    reaches = [part.reach for part in a.liver]
    box = space.box((np.min([r[0] for r in reaches], axis=0), np.max([r[1] for r in reaches], axis=0)))
    if box is None:
        return
    p = space.p[(slice(None), *box)]
    d = smooth_union(a.liver[0].field(p), a.liver[1].field(p), 20)
    d = np.maximum(d, below[box])
    full = np.full(space.p.shape[1:], 99, np.float32)
    full[box] = d
    yield Layer("fat", box, space.cover(np.maximum(d - planes[box], space.abdomen[box])))
    yield Layer("liver", box, space.cover(d))
    yield from simple_layers(space, "liver_vessel", a.liver_vessels, limit=full + 4)
    yield from simple_layers(space, "bile", [a.gallbladder], limit=below)


def _stomach(a: Anatomy, space: Space, below: np.ndarray, planes: np.ndarray) -> Iterator[Layer]:
    box = space.box(a.stomach.reach)
    if box is None:
        return
    p = space.p[(slice(None), *box)]
    d = np.maximum(tube_field(space, a.stomach, box) + a.stomach_waves(p), below[box])
    yield Layer("fat", box, space.cover(np.maximum(d - planes[box], space.abdomen[box])))
    yield Layer("stomach_wall", box, space.cover(d))
    yield Layer("stomach_content", box, space.cover(d + np.float32(a.stomach_wall)))
    gas = np.maximum(d + np.float32(a.stomach_wall), p[1] - np.float32(a.gas_level))
    yield Layer("air", box, space.cover(gas))


def _hollow(
    space: Space, tube: Tube, wall: float, outer: str, inner: str, limit: np.ndarray, fat: np.ndarray
) -> Iterator[Layer]:
    yield from simple_layers(space, outer, [tube], limit=limit, fat=fat)
    yield from simple_layers(space, inner, [tube.grown(-wall)], limit=limit)
