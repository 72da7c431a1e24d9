"""Volumes of two masks, their difference, and what is predicted beyond the slices of the reference, in mL and mm."""

from __future__ import annotations

import math

import numpy as np


def volume_metrics(prediction: np.ndarray, reference: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Return the volumes of both masks in mL and the error of the prediction.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        voxel_ml: volume of a voxel in mL.

    Returns:
        {"volume_ml_prediction", "volume_ml_reference", "volume_error_ml": prediction minus reference,
        "volume_error_percent": of the reference, NaN if it is empty, "fp_ml_outside_extent": mL predicted on slices
        before the first or after the last slice of the reference, or on any slice if the reference is empty}.
    """
    predicted, actual = (int(np.count_nonzero(mask)) * voxel_ml for mask in (prediction, reference))
    return {
        "volume_ml_prediction": predicted,
        "volume_ml_reference": actual,
        "volume_error_ml": predicted - actual,
        "volume_error_percent": 100 * (predicted - actual) / actual if actual else math.nan,
        "fp_ml_outside_extent": _voxels_outside_extent(prediction, reference) * voxel_ml,
    }


def leakage_mm(prediction: np.ndarray, reference: np.ndarray, slice_spacing: float) -> float:
    """Return how far a prediction continues beyond the reference along the slice axis, in mm.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        slice_spacing: dz, millimetres between the centres of neighbouring slices.

    Returns:
        The distance from the reference's last slice, at either end, to the farthest predicted slice beyond it, the
        larger of both ends: 0 if nothing is predicted beyond. An empty reference has no ends: then the extent of the
        prediction. NaN if both masks are empty.
    """
    predicted, actual = (np.flatnonzero(mask.any((1, 2))) for mask in (prediction, reference))
    if not len(actual):
        return float(predicted[-1] - predicted[0] + 1) * slice_spacing if len(predicted) else math.nan
    if not len(predicted):
        return 0.0
    return float(max(actual[0] - predicted[0], predicted[-1] - actual[-1], 0)) * slice_spacing


def _voxels_outside_extent(prediction: np.ndarray, reference: np.ndarray) -> int:
    areas = np.count_nonzero(prediction, axis=(1, 2))
    slices = np.flatnonzero(reference.any((1, 2)))
    inside = areas[slices[0] : slices[-1] + 1].sum() if len(slices) else 0
    return int(areas.sum() - inside)
