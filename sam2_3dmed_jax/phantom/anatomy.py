"""Anatomy of one person: position and size of every organ. `person.draw_anatomy` draws it, `organs` paints it.

Coordinates are mm, x to the person's left, y posterior, z superior; z = 0 is at the kidneys' hila (about L1).
"""

from __future__ import annotations

from dataclasses import dataclass

from sam2_3dmed_jax.phantom.shapes import Ellipsoid, Tube, Waves


@dataclass(frozen=True)
class Torso:
    """Outer shape, abdominal and thoracic cavity, diaphragm."""

    half_width: float  # mm, of the skin
    half_depth: float  # mm
    fat: float  # mm, subcutaneous
    wall: float  # mm, muscle at the sides
    height_scale: float  # of everything along z
    dome_right: float  # mm, top of the diaphragm
    dome_left: float
    recess: float  # mm, lowest point of the lungs at the back
    skin_waves: Waves
    wall_waves: Waves
    dome_waves: Waves
    rib_phase: float  # mm, shifts the ribs along z

    @property
    def cavity_half_width(self) -> float:
        """Half width of the cavity inside the muscle wall, mm."""
        return self.half_width - self.fat - self.wall

    @property
    def cavity_front(self) -> float:
        """y of the cavity's front in the midline, mm."""
        return -(self.half_depth - self.fat - 10)

    @property
    def cavity_back(self) -> float:
        """y of the cavity's back in the midline, without the spine, mm."""
        return self.half_depth - 0.8 * self.fat - 32


@dataclass(frozen=True)
class Spleen:
    """A crescent: an ellipsoid in coordinates (depth below the abdominal lining, arc along the wall, z)."""

    angle: float  # radians about the cavity's centre; 0 is the person's left, pi/2 posterior
    height: float  # mm, z of the centre
    depth: float  # mm below the lining
    radii: tuple[float, float, float]  # mm: thickness, along the wall, along the long axis
    tilt: float  # radians of the long axis out of z
    waves: Waves


@dataclass(frozen=True)
class Anatomy:
    """One person. Shapes are listed by organ; `organs.layers` decides their order from back to front."""

    seed: int
    torso: Torso
    spleen: Spleen
    liver: tuple[Ellipsoid, ...]
    liver_vessels: tuple[Tube, ...]
    gallbladder: Ellipsoid
    stomach: Tube
    stomach_waves: Waves
    stomach_wall: float  # mm
    gas_level: float  # mm, y in front of which the stomach holds gas
    kidneys: tuple[Ellipsoid, ...]  # right, left
    sinuses: tuple[Ellipsoid, ...]  # the kidneys' fat centres
    pancreas: Tube
    pancreas_waves: Waves
    tumour: Ellipsoid
    colon: tuple[Tube, ...]
    bowel: tuple[Tube, ...]
    veins: tuple[Tube, ...]
    arteries: tuple[Tube, ...]
    psoas: tuple[Tube, ...]
    spine: Tube
    heart: Ellipsoid
    airways: tuple[Tube, ...]
    lung_vessels: tuple[Tube, ...]
    nodules: tuple[Ellipsoid, ...]
    planes: Waves  # mm; fat between neighbours where positive, contact where negative
    warp: tuple[Waves, Waves, Waves]  # mm, displaces the coordinates of everything
    spleen_z: tuple[float, float]  # mm, about where the spleen begins and ends
    pancreas_z: tuple[float, float]
