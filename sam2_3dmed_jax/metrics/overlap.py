"""Overlap of two masks: Dice and IoU, over all slices or over the slices without a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.errors import UserError


def overlap_metrics(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return Dice `2 |P and R| / (|P| + |R|)` and IoU `|P and R| / |P or R|`.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.

    Returns:
        {"dice", "iou"}: NaN if both masks are empty (nnU-Net's convention: such a case is left out of means), 0 if one
        of them is empty.

    Raises:
        UserError: the masks have different shapes.
    """
    if prediction.shape != reference.shape:
        raise UserError(
            f"prediction is {prediction.shape} and reference {reference.shape} voxels; give masks on one grid"
        )
    prediction, reference = prediction.astype(bool, copy=False), reference.astype(bool, copy=False)
    sizes = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if sizes == 0:
        return {"dice": math.nan, "iou": math.nan}
    shared = int(np.count_nonzero(prediction & reference))
    return {"dice": 2 * shared / sizes, "iou": shared / (sizes - shared)}


def overlap_without_slices(prediction: np.ndarray, reference: np.ndarray, left_out: Sequence[int]) -> dict[str, float]:
    """Return `overlap_metrics` of all slices but some.

    The result is NaN if the reference has no voxel on the remaining slices, whatever is predicted there. Otherwise, a
    method that predicts nothing would have one case fewer in its mean.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        left_out: indices of slices to leave out.
    """
    kept = np.setdiff1d(np.arange(len(reference)), left_out)
    if not reference[kept].any():
        return {"dice": math.nan, "iou": math.nan}
    return overlap_metrics(prediction[kept], reference[kept])
