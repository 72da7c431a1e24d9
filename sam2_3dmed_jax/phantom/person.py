"""Random anatomy of one person, drawn from one integer.

The positions of an average adult are scaled to a random body and shifted organ by organ. Numbers are mm in the frame of
`anatomy`. `organs` decides which organ hides which where they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.phantom.anatomy import Anatomy, Spleen, Torso
from sam2_3dmed_jax.phantom.lungs import draw_nodules, draw_vessels
from sam2_3dmed_jax.phantom.shapes import Ellipsoid, Tube, Waves, euler, rotation


@dataclass(frozen=True)
class Placer:
    """Places the average adult's points in this person, each with its own random shift."""

    rng: np.random.Generator
    scale: np.ndarray  # [3], this person's size over the average adult's

    def at(self, x: float, y: float, z: float, jitter: float = 4.0) -> np.ndarray:
        """The point [3], shifted by up to `jitter` mm along each axis."""
        return np.array([x, y, z]) * self.scale + self.rng.normal(0, jitter / 2, 3).clip(-jitter, jitter)

    def path(
        self,
        knots: Sequence[tuple[float, float, float]],
        radii: Sequence[float],
        jitter: float = 3.0,
        samples: int = 14,
    ) -> Tube:
        """A tube through the knots, its thickness varied by 12 %."""
        thickness = np.asarray(radii) * self.rng.uniform(0.88, 1.12)
        return Tube.along([self.at(x, y, z, jitter) for x, y, z in knots], thickness, samples)


def draw_anatomy(seed: int) -> Anatomy:
    """Draw a person.

    Args:
        seed: The anatomy seed, an integer >= 0. The same seed gives the same person.

    Returns:
        The anatomy. Nothing in it depends on the scanner or on the scan's range.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    torso = _torso(rng)
    scale = np.array([torso.cavity_half_width / 134, (torso.cavity_back - torso.cavity_front) / 150, 0.0])
    scale[2] = torso.height_scale

    placer = Placer(rng, scale)
    # The order of the calls below is the order of the random draws: it must not change, or every phantom changes.
    spleen = _spleen(rng, scale)
    liver = _liver(placer)
    kidneys, sinuses = _kidneys(placer)
    pancreas = _pancreas(placer)
    tumour = _tumour(rng, pancreas)
    stomach = _stomach(placer)
    lung_vessels = draw_vessels(rng, scale)
    heart = Ellipsoid(
        placer.at(24, -30, 138),
        np.array([58, 44, 46]) * rng.uniform(0.9, 1.1),
        euler(0, 20, 25),
        Waves.draw(rng, 3, 60),
    )
    spleen_half = spleen.radii[2] * abs(np.cos(spleen.tilt)) + spleen.radii[1] * abs(np.sin(spleen.tilt)) * 0.5
    return Anatomy(
        seed=seed,
        torso=torso,
        spleen=spleen,
        liver=liver,
        liver_vessels=_liver_vessels(placer),
        gallbladder=Ellipsoid(
            placer.at(-48, -44, 6, 8), np.array([13, 13, 26]) * rng.uniform(0.6, 1.2), rotation(rng, 30)
        ),
        stomach=stomach,
        stomach_waves=Waves.draw(rng, 2.5, 50),
        stomach_wall=rng.uniform(4, 8),
        gas_level=float(stomach.points[:7, 1].mean() - rng.uniform(0, 30)),
        kidneys=kidneys,
        sinuses=sinuses,
        pancreas=pancreas,
        pancreas_waves=Waves.draw(rng, 1.8, 18),
        tumour=tumour,
        colon=_colon(placer),
        bowel=tuple(_bowel(placer) for _ in range(3)),
        veins=_veins(placer, pancreas),
        arteries=_arteries(placer),
        psoas=_psoas(placer),
        spine=placer.path(
            [(0, 50, -190), (0, 40, -70), (0, 46, 40), (0, 58, 150), (0, 54, 290)], [21, 21, 19, 17, 14], 4, 24
        ),
        heart=heart,
        airways=_airways(placer),
        lung_vessels=lung_vessels,
        nodules=draw_nodules(rng, torso, lung_vessels, heart),
        planes=Waves.draw(rng, 1.6, 45),
        warp=(Waves.draw(rng, 3, 160, 3), Waves.draw(rng, 2.5, 160, 3), Waves.draw(rng, 3, 160, 3)),
        spleen_z=(spleen.height - spleen_half, spleen.height + spleen_half),
        pancreas_z=(float(pancreas.points[:, 2].min() - 10), float(pancreas.points[:, 2].max() + 10)),
    )


def _liver(place: Placer) -> tuple[Ellipsoid, ...]:
    rng, at = place.rng, place.at
    size = rng.uniform(0.88, 1.12)
    left_lobe = rng.uniform(58, 108)  # a long left lobe reaches the spleen
    return (
        Ellipsoid(
            at(-82, 4, 46),
            np.array([72, 82, 76]) * size * place.scale.mean(),
            rotation(rng, 12),
            Waves.draw(rng, 3, 90),
        ),
        Ellipsoid(
            at(-14, -40, 66),
            np.array([left_lobe, 38, rng.uniform(26, 40)]) * size,
            euler(0, rng.uniform(5, 25), 0),
            Waves.draw(rng, 2.5, 70),
        ),
    )


def _tumour(rng: np.random.Generator, pancreas: Tube) -> Ellipsoid:
    k = int(rng.choice([2, 3, 6, 8, 10, 12]))  # twice as often in the head as elsewhere
    radius = rng.uniform(7, 19)
    return Ellipsoid(
        pancreas.points[k] + rng.normal(0, 3, 3),
        radius * rng.uniform(0.8, 1.2, 3),
        rotation(rng, 90),
        Waves.draw(rng, 0.06 * radius, 20),
    )


def _stomach(place: Placer) -> Tube:
    fundus = place.rng.uniform(24, 40)
    return place.path(
        [(54, 10, 90), (58, -16, 62), (50, -40, 30), (24, -54, 4), (-8, -46, -6), (-30, -30, 2)],
        [fundus * 0.8, fundus, fundus * 0.8, fundus * 0.62, 17, 11],
        6,
    )


def _veins(place: Placer, pancreas: Tube) -> tuple[Tube, ...]:
    path = place.path
    return (
        path([(-20, 26, -180), (-21, 24, -40), (-20, 18, 60), (-16, 10, 120)], [10, 11, 12, 12]),
        # The splenic vein runs behind the pancreas.
        Tube.along(pancreas.points[4:] + np.array([0, 9, 2]), [6, 3.5], 10),
        path([(-10, -14, -70), (-9, -8, 0), (-16, -4, 22), (-36, -8, 44)], [4, 6, 6.5, 5]),
        path([(-20, 24, 2), (-34, 32, -3), (-52, 36, -6)], [5, 4.5, 4]),
        path([(-18, 20, 8), (10, 12, 10), (36, 30, 6), (52, 36, 6)], [4, 4.5, 4.5, 4]),
    )


def _arteries(place: Placer) -> tuple[Tube, ...]:
    path = place.path
    return (
        path([(2, 26, -180), (6, 24, -60), (9, 24, 40), (14, 32, 130), (18, 34, 195)], [8, 9, 10.5, 11.5, 12], 2),
        path([(18, 34, 195), (16, 20, 222), (4, -6, 226), (-10, -24, 205), (-4, -22, 160)], [12, 13, 14, 15, 15], 2),
        path([(8, 14, 8), (4, -2, -12), (0, -8, -60)], [4, 4, 3]),
        path([(9, 14, 22), (25, 10, 30), (60, 24, 42), (80, 30, 50)], [4, 3, 2.5, 2]),
    )


def _psoas(place: Placer) -> tuple[Tube, ...]:
    return tuple(
        place.path([(s * 24, 46, 10), (s * 34, 44, -50), (s * 46, 36, -110), (s * 56, 20, -180)], [7, 15, 21, 19])
        for s in (-1, 1)
    )


def _airways(place: Placer) -> tuple[Tube, ...]:
    return (
        place.path([(0, 8, 300), (1, 10, 205)], [9, 8.5]),
        place.path([(1, 10, 205), (-36, 12, 180)], [7.5, 5]),
        place.path([(1, 10, 205), (38, 14, 178)], [7, 5]),
    )


def _torso(rng: np.random.Generator) -> Torso:
    size = rng.uniform(0.9, 1.1)
    fat = rng.uniform(7, 26)
    wall = rng.uniform(12, 16)
    tall = rng.uniform(0.92, 1.08)
    return Torso(
        half_width=size * 140 + fat + wall,
        half_depth=size * rng.uniform(86, 100) + fat + 19,
        fat=fat,
        wall=wall,
        height_scale=tall,
        dome_right=tall * rng.uniform(105, 125),
        dome_left=tall * rng.uniform(95, 115),
        recess=tall * rng.uniform(15, 45),
        skin_waves=Waves.draw(rng, 2.0, 110),
        wall_waves=Waves.draw(rng, 1.5, 60),
        dome_waves=Waves.draw(rng, 3.0, 80),
        rib_phase=rng.uniform(-12, 12),
    )


def _spleen(rng: np.random.Generator, scale: np.ndarray) -> Spleen:
    size = float(np.exp(rng.normal(0, 0.14)).clip(0.75, 1.4))
    thick = size * rng.uniform(26, 33)
    return Spleen(
        angle=np.radians(rng.uniform(8, 32)),
        height=rng.uniform(28, 54) * scale[2],
        depth=thick * rng.uniform(0.45, 0.75),
        radii=(thick, size * rng.uniform(44, 58), size * rng.uniform(46, 60)),
        tilt=np.radians(rng.uniform(-5, 35)),
        waves=Waves.draw(rng, 2.6, 45, 5),
    )


def _kidneys(place: Placer) -> tuple[tuple[Ellipsoid, ...], tuple[Ellipsoid, ...]]:
    rng, at = place.rng, place.at
    kidneys, sinuses = [], []
    for side, z in ((-1, -6), (1, 6)):
        centre = at(side * 58, 35, z, 9)
        radii = np.array([27, 24, 54]) * rng.uniform(0.88, 1.12)
        turn = euler(rng.uniform(-12, 2), side * rng.uniform(-16, -4), side * rng.uniform(15, 45))
        kidneys.append(Ellipsoid(centre, radii, turn, Waves.draw(rng, 1.2, 30)))
        inward = turn @ np.array([-side * 13.0, -6, 0])
        sinuses.append(Ellipsoid(centre + inward, radii * [0.55, 0.42, 0.5], turn, Waves.draw(rng, 1.5, 18)))
    return tuple(kidneys), tuple(sinuses)


def _pancreas(place: Placer) -> Tube:
    rng, at = place.rng, place.at
    # The body arches above neck and tail (or the tail climbs), so that axial slices meet it in several parts.
    arch, tail = rng.uniform(14, 34), rng.uniform(0, 46)
    knots = [
        at(-34, 0, -26),
        at(-30, 0, -6),
        at(-10, -14, 6),
        at(14, -20, arch),
        at(42, -2, 0.5 * (arch + tail) + 6),
        at(72, 22, tail, 8),
    ]
    return Tube.along(knots, np.array([11, 15, 9, 10, 11, 8]) * rng.uniform(0.85, 1.2), 16)


def _colon(place: Placer) -> tuple[Tube, ...]:
    rng, path = place.rng, place.path
    flexure = rng.uniform(5, 45)  # where the colon turns beneath the spleen
    left, right, middle = rng.uniform(14, 21), rng.uniform(17, 25), rng.uniform(14, 22)
    return (
        path(
            [(106, 14, -180), (108, 20, -80), (106, 6, -20), (98, -24, flexure), (78, -46, flexure - 22)], [left] * 5, 6
        ),
        path([(78, -46, flexure - 22), (40, -62, -28), (-20, -64, -40), (-74, -46, -34)], [middle] * 4, 6),
        path([(-74, -46, -34), (-100, -10, -42), (-104, 6, -90), (-98, 0, -180)], [right] * 4, 6),
    )


def _bowel(place: Placer) -> Tube:
    rng, at = place.rng, place.at
    knots = [at(rng.uniform(-70, 74), rng.uniform(-58, 16), rng.uniform(-170, -24)) for _ in range(12)]
    return Tube.along(knots, rng.uniform(9, 14, 12), 48)


def _liver_vessels(place: Placer) -> tuple[Tube, ...]:
    rng, at = place.rng, place.at
    root, gate = at(-18, 14, 92), at(-38, -8, 44)
    ends = [(-110, 10, 70), (-80, -40, 60), (-30, -60, 76), (-100, 40, 40)]
    gates = [(-95, -20, 30), (-90, 30, 20), (-25, -50, 60), (-70, -50, 25)]
    tubes = []
    for start, targets, r in ((root, ends, 4.5), (gate, gates, 5.0)):
        for end in targets:
            stop = at(*end, 14)
            bend = 0.5 * (start + stop) + rng.normal(0, 7, 3)
            tubes.append(Tube.along([start, bend, stop], [r, r * 0.7, r * 0.3], 8))
    return tuple(tubes)
