"""Vessels of the lungs, and nodules next to them."""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.phantom.anatomy import Torso
from sam2_3dmed_jax.phantom.shapes import Ellipsoid, Tube, Waves, rotation


def draw_vessels(rng: np.random.Generator, scale: np.ndarray) -> tuple[Tube, ...]:
    """Return branches from both hila; `scale` [3] is the person's size over the average adult's."""
    tubes = []
    for side in (-1, 1):
        hilum = np.array([side * 34, 10, 180]) * scale
        for _ in range(13):
            end = np.array([side * rng.uniform(45, 125), rng.uniform(-68, 60), rng.uniform(50, 265)]) * scale
            bend = hilum + (end - hilum) * 0.5 + rng.normal(0, 9, 3)
            r = rng.uniform(4.0, 6.5)
            main = Tube.along([hilum, bend, end], [r, 0.6 * r, 0.25 * r], 8)
            tubes.append(main)
            for _ in range(2):
                start = main.points[int(rng.integers(2, 6))]
                stop = start + (end - hilum) * 0.35 + rng.normal(0, 22, 3)
                tubes.append(Tube.along([start, stop], [0.5 * r, 0.2 * r], 4))
    return tuple(tubes)


def draw_nodules(
    rng: np.random.Generator, torso: Torso, vessels: tuple[Tube, ...], heart: Ellipsoid
) -> tuple[Ellipsoid, ...]:
    """Return one to three nodules of 8-30 mm, most of them touching a vessel, all well above the diaphragm."""
    out: list[Ellipsoid] = []
    count = int(rng.choice([1, 1, 2, 3]))
    while len(out) < count:
        tube = vessels[int(rng.integers(len(vessels)))]
        k = int(rng.integers(1, len(tube.radii)))
        radius = rng.uniform(4.7, 13)
        aside = rng.normal(size=3)
        aside *= (tube.radii[k] + 0.75 * radius) / np.linalg.norm(aside) * (1 if rng.random() < 0.75 else 2.5)
        centre = tube.points[k] + aside
        inside = (centre[0] / torso.cavity_half_width) ** 2 + ((centre[1] + 10) / (torso.cavity_back + 10)) ** 2
        if inside > 0.6 or abs(centre[0]) < 58 or not torso.dome_right + 15 < centre[2] < 235 * torso.height_scale:
            continue
        if heart.field(centre[:, None].astype(np.float32))[0] < radius:
            continue
        radii = radius * rng.uniform(0.85, 1.15, 3)
        out.append(Ellipsoid(centre, radii, rotation(rng, 90), Waves.draw(rng, 0.07 * radius, 2.2 * radius)))
    return tuple(out)
