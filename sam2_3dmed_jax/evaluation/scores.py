"""One prediction and one reference become the scores of a row: overlap, surfaces, volumes, and what lies beyond.

Dice and IoU are exact counts on the image's own grid; surface metrics are in millimetres on it, and refused where its
axes are not orthogonal unless resampling is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.metrics.overlap import overlap_metrics
from sam2_3dmed_jax.metrics.surface import DEFINITIONS, EMPTY_POLICIES, surface_metrics
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.nearest_grid import check_orthogonal, is_orthogonal, onto_grid, orthogonal_grid

OVERLAP = ("dice", "iou")
SURFACE = ("nsd", "hd95_mm", "hd_mm", "assd_mm")
UNPROMPTED = ("dice_without_prompted_slices", "iou_without_prompted_slices")
SCORES = (*OVERLAP, *SURFACE, *UNPROMPTED)
VOLUMES = ("volume_ml_prediction", "volume_ml_reference", "volume_error_ml", "volume_error_percent")
BEYOND = "fp_ml_outside_extent"
LOWER_IS_BETTER = ("hd95_mm", "hd_mm", "assd_mm")
_NOTHING = dict.fromkeys(OVERLAP, math.nan)
_EMPTY = {(True, True): "", (True, False): "reference", (False, True): "prediction", (False, False): "both"}


@dataclass(frozen=True)
class Measure:
    """How masks are measured."""

    definition: str = "surface-distance"  # of surfaces, one of `DEFINITIONS`
    empty: str = "diagonal"  # mm when one mask is empty, one of `EMPTY_POLICIES`
    surfaces: bool = True  # NSD, HD95, HD and ASSD, or overlap alone
    resample: bool = False  # slanted grids are measured on an orthogonal one, by nearest neighbour

    def __post_init__(self) -> None:
        if self.definition not in DEFINITIONS:
            raise UserError(f"--definition: there is no '{self.definition}'; choose one of {', '.join(DEFINITIONS)}")
        if self.empty not in EMPTY_POLICIES:
            raise UserError(f"--empty: there is no '{self.empty}'; choose one of {', '.join(EMPTY_POLICIES)}")


def check_grid(grid: Grid, measure: Measure) -> None:
    """Raise `UserError` for a grid on which this cannot be measured."""
    if measure.surfaces and not measure.resample:
        check_orthogonal(grid)


def score(
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    prompted: Sequence[int] = (),
    tolerance_mm: float = 3.0,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """The columns of a row that two masks settle.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        grid: of both.
        prompted: canonical slices on which a prompt was given.
        tolerance_mm: of NSD.
        measure: how.

    Returns:
        `SCORES`, `VOLUMES`, `BEYOND` and "empty": '' or which mask is empty. NaN: no value, see `summary.DEFINITIONS`.

    Raises:
        UserError: surfaces on a slanted grid, without resampling.
    """
    measure = measure or Measure()
    voxel = grid.voxel_volume_ml
    predicted, actual = (int(np.count_nonzero(mask)) * voxel for mask in (prediction, reference))
    surfaces = dict.fromkeys(SURFACE, math.nan)
    if measure.surfaces:
        surfaces = _surfaces(prediction, reference, grid, tolerance_mm, measure)
    overlap = overlap_metrics(prediction, reference)
    return {
        **overlap,
        **surfaces,
        **dict(zip(UNPROMPTED, _unprompted(prediction, reference, prompted, overlap).values(), strict=True)),
        "volume_ml_prediction": predicted,
        "volume_ml_reference": actual,
        "volume_error_ml": predicted - actual,
        "volume_error_percent": 100 * (predicted - actual) / actual if actual else math.nan,
        BEYOND: _beyond(prediction, reference) * voxel,
        "empty": _EMPTY[bool(predicted), bool(actual)],
    }


def _surfaces(
    prediction: np.ndarray, reference: np.ndarray, grid: Grid, tolerance_mm: float, measure: Measure
) -> dict[str, float]:
    check_grid(grid, measure)
    spacing = grid.spacing
    if not is_orthogonal(grid):
        target = orthogonal_grid(grid)
        prediction, reference = (onto_grid(mask, grid, target) for mask in (prediction, reference))
        spacing = target.spacing
    return surface_metrics(prediction, reference, spacing, tolerance_mm, measure.definition, measure.empty)


def _unprompted(
    prediction: np.ndarray, reference: np.ndarray, prompted: Sequence[int], overlap: dict[str, float]
) -> dict[str, float]:
    """Overlap without the prompted slices; `overlap` is that of all slices.

    A reference that lies on prompted slices alone leaves nothing to score, whatever is predicted. Without that rule a
    method that finds nothing would have a case less that counts.
    """
    if not len(prompted):
        return overlap
    other = np.setdiff1d(np.arange(len(reference)), prompted)
    return overlap_metrics(prediction[other], reference[other]) if reference[other].any() else _NOTHING


def _beyond(prediction: np.ndarray, reference: np.ndarray) -> int:
    """Voxels predicted on slices before the reference's first or after its last; all if it is empty."""
    areas = np.count_nonzero(prediction, axis=(1, 2))
    slices = np.flatnonzero(reference.any((1, 2)))
    inside = areas[slices[0] : slices[-1] + 1].sum() if len(slices) else 0
    return int(areas.sum() - inside)
