"""Pairs of masks for comparisons of surface metrics, and the results of the three packages for them."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

DEFINITIONS = ("surface-distance", "monai", "medpy")


class Case(NamedTuple):
    prediction: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, float, float]
    tolerance: float


def blobs(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return two smooth random masks that mostly agree; they may touch any border."""
    noise = np.random.default_rng(seed).standard_normal((3, *shape))
    common, one, other = (ndimage.gaussian_filter(field, 1.5, mode="wrap") for field in noise)
    return common + 0.4 * one > 0.05, common + 0.4 * other > 0.05


def make_cases() -> dict[str, Case]:
    cases = {}
    spacings = ((1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (2.5, 0.785156, 0.785156), (0.7, 3.0, 1.25), (0.785, 0.785, 0.785))
    shapes = ((12, 20, 22), (9, 24, 31), (24, 16, 10), (17, 17, 17), (8, 40, 20))
    for seed, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True)):
        # Tolerances are multiples of a spacing: many distances are equal to them, so that rounding decides.
        for times in (1, 2, 3):
            cases[f"blobs {seed}, {times}"] = Case(*blobs(seed, shape), spacing, times * spacing[2])
    rng = np.random.default_rng(7)
    noise = rng.random((2, 6, 9, 8)) < 0.3
    cases["salt and pepper"] = Case(*noise, (3.0, 0.9, 0.7), 1.4)  # type: ignore[call-arg]
    cases["specks"] = Case(*(rng.random((2, 30, 40, 50)) < 3e-4), (2.0, 0.7, 0.9), 5.0)  # type: ignore[call-arg]
    one, other = np.zeros((2, 10, 30, 30), bool)
    one[4, 3:27, 5:25], other[6, 4:29, 5:24] = True, True
    cases["thin sheets"] = Case(one, other, (5.0, 0.8, 0.8), 10.0)
    one, other = np.zeros((2, 7, 8, 9), bool)
    one[1, 2, 3], other[5, 7, 8] = True, True
    cases["single voxels"] = Case(one, other, (2.5, 0.6, 0.9), 3.0)
    one, other = np.zeros((2, 6, 12, 14), bool)
    one[:, :7], other[2:, :, 5:] = True, True
    cases["at the borders"] = Case(one, other, (4.0, 0.75, 0.75), 3.75)
    cases["the whole image"] = Case(np.ones((5, 6, 7), bool), other[:5, :6, :7], (1.5, 1.0, 2.0), 1.0)
    one, other = np.zeros((2, 1, 24, 24), bool)
    one[0, 3:20, 4:18], other[0, 5:21, 4:20] = True, True
    cases["one slice"] = Case(one, other, (5.0, 0.9, 0.9), 0.9)
    one, other = blobs(11, (10, 50, 60))
    one[:, 20:], other[:, 20:] = False, False
    one[8, 48, 58] = True
    cases["a speck far off"] = Case(one, other, (5.0, 0.7, 0.7), 3.0)
    one, other = np.zeros((2, 4, 60, 80), bool)
    one[1:3, 4:20, 5:25], other[1:3, 40:58, 50:75] = True, True
    cases["far apart"] = Case(one, other, (3.0, 0.8, 0.7), 3.0)
    # Equally near except for rounding: 3 voxels along an axis are 2.355 mm away, (2, 2, 1) slightly further in float64.
    one, other = np.zeros((2, 13, 13, 13), bool)
    one[6, 6, 6], other[9, 6, 6], other[8, 8, 7] = True, True, True
    cases["a rounding apart"] = Case(one, other, (0.785,) * 3, 3 * 0.785)
    # 3 * 0.1 > 0.3 in float64, but not in float32, in which MONAI compares.
    one, other = blobs(12, (15, 15, 15))
    cases["a rounding beyond"] = Case(one, other, (0.1,) * 3, 0.3)
    return cases


def surface_distance_metrics(case: Case) -> dict[str, float]:
    from surface_distance import metrics

    surfaces = metrics.compute_surface_distances(case.reference, case.prediction, case.spacing)
    distances = [surfaces["distances_gt_to_pred"], surfaces["distances_pred_to_gt"]]
    areas = [surfaces["surfel_areas_gt"], surfaces["surfel_areas_pred"]]
    return {
        "nsd": float(metrics.compute_surface_dice_at_tolerance(surfaces, case.tolerance)),
        "hd95_mm": float(metrics.compute_robust_hausdorff(surfaces, 95)),
        "hd_mm": float(metrics.compute_robust_hausdorff(surfaces, 100)),
        # The package averages each direction separately; here both together, as in MONAI and MedPy.
        "assd_mm": float(np.average(np.concatenate(distances), weights=np.concatenate(areas))),
    }


def monai_metrics(case: Case) -> dict[str, float]:
    import torch
    from monai import metrics

    masks = [torch.from_numpy(mask)[None, None] for mask in (case.prediction, case.reference)]
    how = {"include_background": True, "spacing": case.spacing}
    return {
        "nsd": float(metrics.compute_surface_dice(*masks, [case.tolerance], **how)),
        "hd95_mm": float(metrics.compute_hausdorff_distance(*masks, percentile=95, **how)),
        "hd_mm": float(metrics.compute_hausdorff_distance(*masks, **how)),
        "assd_mm": float(metrics.compute_average_surface_distance(*masks, symmetric=True, **how)),
    }


def medpy_metrics(case: Case) -> dict[str, float]:
    from medpy.metric import binary

    masks = case.prediction, case.reference, case.spacing
    return {"hd95_mm": float(binary.hd95(*masks)), "hd_mm": float(binary.hd(*masks)), "assd_mm": binary.assd(*masks)}


PACKAGE_METRICS = dict(zip(DEFINITIONS, (surface_distance_metrics, monai_metrics, medpy_metrics), strict=True))
