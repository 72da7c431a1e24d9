"""Colours of objects without a colour of their own, in the order of the objects."""

from __future__ import annotations

COLOURS = (
    "#ffb000",
    "#56b4e9",
    "#f07fc0",
    "#00c896",
    "#f0e442",
    "#ff6a3d",
)  # after Okabe and Ito; distinct for colour-blind readers
