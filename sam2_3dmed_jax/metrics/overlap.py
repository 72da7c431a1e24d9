"""Overlap of two masks: Dice and IoU."""

from __future__ import annotations

import numpy as np

from sam2_3dmed_jax.errors import UserError


def overlap_metrics(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Dice `2 |P and R| / (|P| + |R|)` and IoU `|P and R| / |P or R|` of two bool masks `[D, H, W]`.

    Both empty gives NaN (nnU-Net's convention: such a case is left out of means), one empty gives 0.

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
        return {"dice": float("nan"), "iou": float("nan")}
    shared = int(np.count_nonzero(prediction & reference))
    return {"dice": 2 * shared / sizes, "iou": shared / (sizes - shared)}
