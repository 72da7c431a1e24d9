"""Surface metrics of two masks in millimetres: NSD, HD95, HD and ASSD.

Three definitions, after DeepMind's `surface-distance`, MONAI and MedPy; `surface_statistics` has their differences.
The search for nearest elements is compiled for any device (`nearest_surface`); sums are float64 on the host. The axes
of the grid must be orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.metrics.mask_box import union_box
from sam2_3dmed_jax.metrics.nearest_surface import nearest_surface_elements
from sam2_3dmed_jax.metrics.surface_area import area_of_codes
from sam2_3dmed_jax.metrics.surface_statistics import area_weighted_metrics, surface_distances, unweighted_metrics

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
    """Return the surface metrics of two masks on one grid; they are symmetric in the two masks.

    Args:
        prediction: bool `[D, H, W]` (any other dtype: not 0).
        reference: bool `[D, H, W]`.
        spacing: millimetres between voxels, (dz, dy, dx).
        tolerance_mm: surface elements up to this distance agree, for NSD.
        definition: 'surface-distance' (marching-cubes surface, weighted by area), 'monai' (border voxels, the greater
            percentile of the two directions) or 'medpy' (border voxels, both directions pooled).
        empty: distances where one mask is empty, see `empty_surface_metrics`.

    Returns:
        {"nsd": 0 to 1, "hd95_mm", "hd_mm", "assd_mm"}; all NaN if both masks are empty.

    Raises:
        UserError: the masks differ in shape or are not 3D, or another argument has an invalid value.
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

    present = bool(prediction.any()), bool(reference.any())
    if not all(present):
        return empty_surface_metrics(any(present), prediction.shape, spacing, empty)
    box = union_box(prediction, reference)
    voxels = definition != "surface-distance"
    surfaces = nearest_surface_elements(box, spacing, voxels)
    weights = np.ones(256) if voxels else area_of_codes(spacing)
    precision = np.float32 if voxels else np.float64
    distances = surface_distances(surfaces, box.shape, spacing, tolerance_mm, weights, precision)
    return unweighted_metrics(*distances, pooled=definition == "medpy") if voxels else area_weighted_metrics(*distances)


def empty_surface_metrics(
    one_present: bool, shape: Sequence[int], spacing: Sequence[float], empty: str = "diagonal"
) -> dict[str, float]:
    """Return the metrics where at least one mask is empty, so that distances do not exist.

    Args:
        one_present: whether the other mask is not empty. If both are empty, all metrics are NaN (nnU-Net's convention),
            and the case is left out of means.
        shape: of the image, `[D, H, W]`.
        spacing: millimetres, (dz, dy, dx).
        empty: 'diagonal': distances are the image's diagonal, which is the largest distance between two of its points,
            so that a missed structure never improves a mean. 'nan': distances are NaN, and so is their mean. NSD is 0
            with either policy.
    """
    diagonal = math.hypot(*(n * step for n, step in zip(shape, spacing, strict=True)))
    distance = diagonal if one_present and empty == "diagonal" else math.nan
    return {"nsd": 0.0 if one_present else math.nan} | dict.fromkeys(("hd95_mm", "hd_mm", "assd_mm"), distance)


def _as_mask(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 3:
        raise UserError(f"{name} has the shape {array.shape}; give one mask, [D, H, W]")
    return array if array.dtype == bool else array != 0
