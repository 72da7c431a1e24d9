"""What a case must be before it is prepared: image and labels on one grid, declared labels, something to segment."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection

import numpy as np

from sam2_3dmed_jax.data.dataset_json import MAX_LABEL
from sam2_3dmed_jax.data.datasets import Case
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.image_file import one_line
from sam2_3dmed_jax.volume.io import read_labels, read_volume

HU_RANGE = (-1024, 3071)  # of a scanner with 12 bits: air to dense bone
_LEAST_CONTRAST = 10  # HU between the darkest and the brightest voxel: any CT has over 1,000
_BLOCK = 1 << 20  # bytes
_MODALITIES = {"MRI": "MR", "COMPUTED TOMOGRAPHY": "CT", "CTA": "CT", "CT SCAN": "CT"}


def modality_of(declared: str | None) -> str:
    """DICOM's word for what a dataset declares, such as "MR" for "MRI"; CT if it declares nothing."""
    word = (declared or "").strip().upper() or "CT"
    return _MODALITIES.get(word, word)


def read_case(case: Case, declared: Collection[int], modality: str) -> tuple[Volume, np.ndarray]:
    """Read and check a case.

    Args:
        case: its files.
        declared: label values that may occur, without 0; empty: any from 1 to 255.
        modality: of a file whose format does not say it.

    Returns:
        The volume, and its labels uint8 `[D, H, W]`, both canonical.

    Raises:
        UserError: a file cannot be read, the grids differ, the image shows nothing, a label is not declared, or there
            is nothing to segment.
    """
    volume = read_volume(case.image, modality=modality)
    labels = read_labels(case.label, volume)
    for path in (case.image, case.label):
        if path.endswith(".gz"):
            _check_gzip(path)
    _check_contrast(case.image, volume)
    low, high = int(labels.min()), int(labels.max())
    if low == high == 0:
        raise UserError(f"{case.label} is empty, expected something to segment: label the case, or leave it out")
    if low < 0 or high > MAX_LABEL:
        wrong = low if low < 0 else high
        raise UserError(f"{case.label} holds the label {wrong}, expected 0 to {MAX_LABEL}: renumber the labels")
    found = np.flatnonzero(np.bincount(labels.reshape(-1)))
    wrong_ones = sorted(set(found.tolist()) - {0} - set(declared)) if declared else []
    if wrong_ones:
        count = int((labels == wrong_ones[0]).sum())
        raise UserError(
            f"{case.label} holds the label {wrong_ones[0]} on {count} voxels, expected those declared, "
            f"{', '.join(map(str, sorted(declared)))}: declare it in dataset.json, or correct the file"
        )
    return volume, labels.astype(np.uint8)


def areas_of(labels: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Each label that occurs in uint8 `[D, H, W]`, but 0, to its pixels on each slice `[D]`."""
    counts = np.stack([np.bincount(plane.reshape(-1), minlength=MAX_LABEL + 1) for plane in labels])
    present = np.flatnonzero(counts.any(axis=0))
    return {int(value): tuple(counts[:, value].tolist()) for value in present if value}


def _check_gzip(path: str) -> None:
    """Compare a file's contents with its checksum, which readers that stop at the last voxel never come to."""
    try:
        with gzip.open(path) as file:
            while file.read(_BLOCK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({one_line(error)}): copy or download it again") from None


def _check_contrast(path: str, volume: Volume) -> None:
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        raise UserError(f"{path} holds the value {low:g} everywhere, expected an image: export it again")
    if volume.modality == "CT" and np.ptp(np.clip([low, high], *HU_RANGE)) < _LEAST_CONTRAST:
        raise UserError(
            f"{path} holds values from {low:g} to {high:g}, expected a CT in HU, from about {HU_RANGE[0]} to "
            f"{HU_RANGE[1]}: export it in HU, or name its modality in dataset.json"
        )
