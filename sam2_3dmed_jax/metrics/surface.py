"""Distances between the surfaces of two masks in millimetres: NSD, HD95, HD and ASSD.

Three definitions, after DeepMind's `surface-distance`, MONAI and MedPy; `surface_statistics` says how they differ.
Searching compiles for any device (`nearest_element`); summing is float64 on the host. Slanted grids are left out: axes
are orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.metrics.mask_box import union_box
from sam2_3dmed_jax.metrics.nearest_surface import nearest_elements
from sam2_3dmed_jax.metrics.surface_area import area_of_codes
from sam2_3dmed_jax.metrics.surface_statistics import area_weighted, counted, measure

DEFINITIONS = ("surface-distance", "monai", "medpy")
EMPTY_POLICIES = ("diagonal", "nan")


def surface_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    tolerance_mm: float = 3.0,
    definition: str = "surface-distance",
    empty: str = "diagonal",
) -> dict[str, float]:
    """Surface metrics of two masks on one grid; neither is favoured: exchanging them changes nothing.

    Args:
        prediction: bool `[D, H, W]` (any other type: not 0).
        reference: bool `[D, H, W]`.
        spacing: millimetres between voxels, (dz, dy, dx).
        tolerance_mm: a surface element no further than this counts as agreeing, for NSD.
        definition: 'surface-distance' (marching-cubes surface, weighted by area), 'monai' (border voxels, the greater
            percentile of the two directions) or 'medpy' (border voxels, both directions pooled).
        empty: what one empty mask means, see `empty_surface_metrics`.

    Returns:
        {"nsd": 0 to 1, "hd95_mm", "hd_mm", "assd_mm"}; all NaN if both masks are empty.

    Raises:
        UserError: shapes differ or are not 3D, or another argument is none of the above.
    """
    prediction, reference = _as_mask("prediction", prediction), _as_mask("reference", reference)
    if prediction.shape != reference.shape:
        raise UserError(
            f"prediction is {prediction.shape} and reference {reference.shape} voxels; give masks on one grid"
        )
    spacing = tuple(map(float, spacing))
    if len(spacing) != 3 or not all(0 < step < math.inf for step in spacing):
        raise UserError(f"spacing is {spacing}; give three positive numbers, (dz, dy, dx) in mm")
    if not 0 <= tolerance_mm < math.inf:
        raise UserError(f"tolerance_mm is {tolerance_mm}; give a number of millimetres, 0 or more")
    if definition not in DEFINITIONS:
        raise UserError(f"definition is {definition!r}; choose one of {', '.join(DEFINITIONS)}")
    if empty not in EMPTY_POLICIES:
        raise UserError(f"empty is {empty!r}; choose one of {', '.join(EMPTY_POLICIES)}")

    found = bool(prediction.any()), bool(reference.any())
    if not all(found):
        return empty_surface_metrics(any(found), prediction.shape, spacing, empty)
    box = union_box(prediction, reference)
    voxels = definition != "surface-distance"
    elements = nearest_elements(box, spacing, voxels)
    weights = np.ones(256) if voxels else area_of_codes(spacing)
    precision = np.float32 if voxels else np.float64
    surfaces = measure(elements, box.shape, spacing, tolerance_mm, weights, precision)
    return counted(*surfaces, pooled=definition == "medpy") if voxels else area_weighted(*surfaces)


def empty_surface_metrics(
    one_present: bool, shape: Sequence[int], spacing: Sequence[float], empty: str = "diagonal"
) -> dict[str, float]:
    """What is reported when a mask is empty and there is no distance.

    Args:
        one_present: the other mask is not empty. If it is too, there is nothing to score: NaN throughout, nnU-Net's
            convention, and the case is left out of means.
        shape: of the image, `[D, H, W]`.
        spacing: millimetres, (dz, dy, dx).
        empty: 'diagonal', distances are the image's diagonal, which no two of its points exceed, so that a miss never
            improves a mean; or 'nan', distances are NaN, and so must be their mean. NSD is 0 either way.
    """
    diagonal = math.hypot(*(n * step for n, step in zip(shape, spacing, strict=True)))
    distance = diagonal if one_present and empty == "diagonal" else math.nan
    return {"nsd": 0.0 if one_present else math.nan} | dict.fromkeys(("hd95_mm", "hd_mm", "assd_mm"), distance)


def _as_mask(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 3:
        raise UserError(f"{name} has the shape {array.shape}; give one mask, [D, H, W]")
    return array if array.dtype == bool else array != 0
