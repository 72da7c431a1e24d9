"""How metrics are called in the report, and to how many digits they are shown."""

from __future__ import annotations

from typing import Any

from sam2_3dmed_jax.evaluation.report.markup import Number

NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "hd95_mm": "HD95 (mm)",
    "hd_mm": "HD (mm)",
    "assd_mm": "ASSD (mm)",
    "dice_without_prompted_slices": "Dice without prompted slices",
    "iou_without_prompted_slices": "IoU without prompted slices",
    "volume_ml_prediction": "predicted volume (mL)",
    "volume_ml_reference": "reference volume (mL)",
    "volume_error_ml": "volume error (mL)",
    "volume_error_percent": "volume error (%)",
    "fp_ml_outside_extent": "beyond the extent (mL)",
    "band_entropy": "entropy at the boundary (bits)",
    "band_ece": "calibration error at the boundary",
    "band_brier": "Brier score at the boundary",
    "tflops": "FLOPs (1e12)",
    "peak_host_mib": "peak host memory (MiB)",
    "peak_device_mib": "peak device memory (MiB)",
    "lesions_reference": "lesions",
    "lesions_found": "lesions found",
    "lesions_false_positive": "false lesions",
    "largest_lesion_mm": "largest lesion (mm)",
}
_SIGNED = ("volume_error_ml", "volume_error_percent")


def name_of(metric: str) -> str:
    """The metric in words, with its unit."""
    return NAMES.get(metric, metric.replace("_", " "))


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1."""
    return metric.startswith(("dice", "iou", "nsd", "band_e", "band_b"))


def number(metric: str, value: float | None, exact: str | None = None) -> Number:
    """A value of a metric as a cell."""
    return Number(value, 4 if is_share(metric) else 2, exact, metric in _SIGNED)


def row_cell(row: dict[str, Any], column: str) -> Number | str:
    """A cell of a case's row; its whole number is what `cases.csv` has, six digits."""
    value = row.get(column, "")
    return number(column, value, f"{value:.6g}") if isinstance(value, float) else str(value)


def tolerances(summary: dict[str, Any]) -> str:
    """The tolerance of NSD, of each class where they differ."""
    of = {name: f"{entry['tolerance_mm']:g} mm" for name, entry in summary["classes"].items()}
    if len(set(of.values())) == 1:
        return next(iter(of.values()))
    return ", ".join(f"{name} {value}" for name, value in of.items())
