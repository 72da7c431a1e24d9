"""Volumes of two masks, their difference, and the volume predicted beyond the slices of the reference."""

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


def _voxels_outside_extent(prediction: np.ndarray, reference: np.ndarray) -> int:
    areas = np.count_nonzero(prediction, axis=(1, 2))
    slices = np.flatnonzero(reference.any((1, 2)))
    inside = areas[slices[0] : slices[-1] + 1].sum() if len(slices) else 0
    return int(areas.sum() - inside)
