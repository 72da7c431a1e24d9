"""Overlap of two masks: Dice and IoU."""

from __future__ import annotations

import numpy as np


def overlap_metrics(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Dice `2 |P and R| / (|P| + |R|)` and IoU `|P and R| / |P or R|` of two bool masks `[D, H, W]`.

    Both empty gives NaN (nnU-Net's convention: such a case is left out of means), one empty gives 0.

    Raises:
        ValueError: the masks have different shapes.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"the masks have different shapes: {prediction.shape} and {reference.shape}")
    prediction, reference = prediction.astype(bool), reference.astype(bool)
    sizes = int(prediction.sum()) + int(reference.sum())
    if sizes == 0:
        return {"dice": float("nan"), "iou": float("nan")}
    shared = int((prediction & reference).sum())
    return {"dice": 2 * shared / sizes, "iou": shared / (sizes - shared)}
