"""Checks of a case: image and labels on one grid, only declared labels, and a labelled voxel."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from sam2_3dmed_jax.data.dataset_json import MAX_LABEL
from sam2_3dmed_jax.data.datasets import LabelledCase
from sam2_3dmed_jax.errors import CHOICES, UserError, listed
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import HU_RANGE
from sam2_3dmed_jax.volume.io import read_labels, read_volume

_MIN_CONTRAST = 10  # HU between the darkest and the brightest voxel; real CTs have more than 1,000


def read_case(
    case: LabelledCase, declared: Collection[int], modality: str, keep_empty: bool = False
) -> tuple[Volume, np.ndarray]:
    """Read and check a case.

    Args:
        case: its files.
        declared: allowed label values without 0; empty: 1 to 255.
        modality: modality of files whose format does not store it.
        keep_empty: accept a case without a labelled voxel.

    Returns:
        The volume and its labels, uint8 `[D, H, W]`, in canonical order.

    Raises:
        UserError: a file cannot be read, the grids differ, the image is constant or not in HU, a label is not declared,
            or no voxel is labelled and `keep_empty` is False.
    """
    volume = read_volume(case.image, modality=modality)
    labels = read_labels(case.label, volume)
    _check_contrast(case.image, volume)
    low, high = int(labels.min()), int(labels.max())
    if low == high == 0 and not keep_empty:
        raise UserError(
            f"{case.label} is empty, expected labelled voxels: label the case, remove it, or keep it for training as a "
            "scan without an object (--keep-empty)"
        )
    if low < 0 or high > MAX_LABEL:
        wrong = low if low < 0 else high
        raise UserError(f"{case.label} has the label {wrong}, expected 0 to {MAX_LABEL}: renumber the labels")
    present = np.flatnonzero(np.bincount(labels.reshape(-1)))
    undeclared = sorted(set(present.tolist()) - {0} - set(declared)) if declared else []
    if undeclared:
        count = int((labels == undeclared[0]).sum())
        raise UserError(
            f"{case.label} has the label {undeclared[0]} on {count} voxels, expected the declared ones, "
            f"{listed(sorted(declared), CHOICES)}: declare it in dataset.json, or correct the file"
        )
    return volume, labels.astype(np.uint8)


def label_areas(labels: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Return the voxels on each slice `[D]` of each label in uint8 `[D, H, W]`, without 0."""
    counts = np.stack([np.bincount(plane.reshape(-1), minlength=MAX_LABEL + 1) for plane in labels])
    present = np.flatnonzero(counts.any(axis=0))
    return {int(value): tuple(counts[:, value].tolist()) for value in present if value}


def _check_contrast(path: str, volume: Volume) -> None:
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        raise UserError(f"{path} has the value {low:g} everywhere, expected an image: export it again")
    if volume.modality == "CT" and np.ptp(np.clip([low, high], *HU_RANGE)) < _MIN_CONTRAST:
        raise UserError(
            f"{path} has values from {low:g} to {high:g}, expected a CT in HU, from about {HU_RANGE[0]} to "
            f"{HU_RANGE[1]}: export it in HU, or declare its modality in dataset.json or with --modality"
        )
