"""Scores of the challenge: DSC and NSD of a label map, and the area under their curves over the clicks.

Source: `compute_multi_class_dsc`, `compute_multi_class_nsd` and the end of the loop in `CVPR25_iter_eval.py`
(JunMa11/CVPR-MedSegFMCompetition). Its surface distances are DeepMind's `surface-distance`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.metrics.overlap import overlap_metrics
from sam2_3dmed_jax.metrics.surface import surface_metrics

CLICKS = 5
TOLERANCE_MM = 2.0
SECONDS_PER_CLASS = 90  # for all calls on one case
_WORTH_SURFACES = 0.2  # NSD is 0 unless DSC is above it


def dsc_and_nsd(
    segmentation: np.ndarray, reference: np.ndarray, classes: Sequence[int], spacing: Sequence[float]
) -> tuple[float, float]:
    """Return the means of DSC and NSD over classes; NSD is 0 where the mean DSC is at most 0.2.

    Args:
        segmentation: label map `[D, H, W]`.
        reference: label map `[D, H, W]`.
        classes: the values of the reference, except 0.
        spacing: millimetres along the axes.
    """
    pairs = [(segmentation == value, reference == value) for value in classes]
    dsc = float(np.mean([overlap_metrics(*pair)["dice"] for pair in pairs]))
    if not dsc > _WORTH_SURFACES:
        return dsc, 0.0
    return dsc, float(np.mean([surface_metrics(*pair, spacing, TOLERANCE_MM)["nsd"] for pair in pairs]))


def area_over_clicks(scores: Sequence[float]) -> float:
    """Return the area under a curve over its last five values, by the trapezoid rule with steps of 1: at most 4."""
    return float(np.trapezoid(np.asarray(scores[-CLICKS:], np.float64)))
