"""Area of the marching-cubes surface in a cube of 2 x 2 x 2 voxels, for each of its 256 configurations.

The triangles are those of DeepMind's `surface-distance` 0.1 (`lookup_tables.py`, Apache-2.0): marching cubes through
the middles of the cube's edges. Rotation, reflection and exchanging inside with outside reduce its 256 entries to 13
cases. Only areas are kept; the orientation of the triangles is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

CORNERS = tuple(itertools.product((0, 1), repeat=3))  # bit i of a code is set where corner i, (z, y, x), is inside
FULL = 255

# Corners inside, and the triangles between them and the others: |normals|, whose lengths are areas, in eighths.
_CASES: tuple[tuple[str, tuple[tuple[int, int, int], ...]], ...] = (
    ("111", ((1, 1, 1),)),
    ("111 110", ((2, 2, 0), (2, 2, 0))),
    ("110 101", ((1, 1, 1), (1, 1, 1))),
    ("100 011", ((1, 1, 1), (1, 1, 1))),
    ("111 110 101", ((4, 0, 0), (2, 2, 2), (1, 1, 1))),
    ("110 101 011", ((1, 1, 1), (1, 1, 1), (1, 1, 1))),
    ("111 100 011", ((0, 2, 2), (0, 2, 2), (1, 1, 1))),
    ("111 110 101 100", ((4, 0, 0), (4, 0, 0))),
    ("111 110 101 011", ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1))),
    ("111 110 100 011", ((1, 1, 1), (3, 3, 3), (0, 2, 2), (2, 0, 2))),
    ("110 101 100 011", ((4, 0, 0), (1, 1, 1), (2, 2, 2), (1, 1, 1))),
    ("101 100 011 010", ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0))),
    ("111 100 010 001", ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))),
)


def _normals_of_codes() -> np.ndarray:
    """Return float64 `[256, 4, 3]`: |normals| of the triangles of each code in a cube of side 1, padded with zeros."""
    table = np.full((256, 4, 3), np.nan)
    table[[0, FULL]] = 0
    for corners, triangles in _CASES:
        inside = np.array([[int(digit) for digit in corner] for corner in corners.split()])
        normals = np.zeros((4, 3))
        normals[: len(triangles)] = np.array(triangles) / 8
        for axes in map(list, itertools.permutations(range(3))):
            for mirrored in CORNERS:
                code = sum(1 << CORNERS.index(tuple(c)) for c in (inside[:, axes] ^ mirrored).tolist())
                table[[code, FULL - code]] = normals[:, axes]
    return table


_NORMALS = _normals_of_codes()


def area_of_codes(spacing: Sequence[float]) -> np.ndarray:
    """Return the area in mm2 of the surface in a cube of each code.

    A component of a normal is the area projected along that axis, so it scales with the product of the other two
    spacings.

    Args:
        spacing: distance between voxel centres in mm, (dz, dy, dx).

    Returns:
        float64 `[256]`.
    """
    dz, dy, dx = spacing
    return np.asarray(np.sqrt(np.square(_NORMALS * [dy * dx, dz * dx, dz * dy]).sum(-1)).sum(-1))
