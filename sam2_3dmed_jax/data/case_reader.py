"""Reader of prepared cases for the model: windowed slices of S x S pixels, or of the stored size, and their labels.

The preprocessing is the one of prediction (`volume.intensity`). Only the window of each case is cached.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.dataset_json import MAX_LABEL
from sam2_3dmed_jax.data.prepared import PreparedCase, PreparedDataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import intensity
from sam2_3dmed_jax.volume.geometry import Grid, Volume


class CaseReader:
    """Reads slices of cases; can be pickled and shared between threads."""

    def __init__(self, dataset: PreparedDataset, config: DataConfig, image_size: int):
        """Check the settings; `image_size` is S, and 0 keeps the stored size.

        Raises:
            UserError: `data.classes` contains a label that the dataset does not declare, or the window is not valid.
        """
        self.dataset, self.image_size = dataset, image_size
        self.classes = classes_to_segment(config, dataset.labels, dataset.path)
        self._window = config.preprocessing.window
        self._windows: dict[str, tuple[float, float]] = {}

    def areas(self, case: PreparedCase) -> dict[int, np.ndarray]:
        """Return the area on each slice, `[D]` int64 in voxels, of each class that the case contains."""
        return {value: np.array(case.areas[value]) for value in self.classes if any(case.areas.get(value, ()))}

    def pixel_mm(self, case: PreparedCase) -> tuple[float, float]:
        """Return (dy, dx) in mm of a pixel of the resized slices."""
        (_, height, width), (_, dy, dx) = case.shape, case.spacing
        size = self.image_size
        return (dy * height / size, dx * width / size) if size else (dy, dx)

    def read(
        self, case: PreparedCase, slices: Sequence[int], crop: tuple[slice, slice] = (slice(None), slice(None))
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read values float32 `[n, S, S]` in [0, 1] and labels uint8 `[n, S, S]` of n slices.

        Labels that are not segmented become 0. A resized pixel has a label if the label covers at least half of it.

        Args:
            case: the case.
            slices: indices of slices.
            crop: stored rows and columns to read.

        Raises:
            UserError: the shard is damaged.
        """
        values, labels = self.dataset.read(case, slices)
        return self._preprocessed(case, values[:, *crop]), self._selected(case, labels[:, *crop])

    def values(self, case: PreparedCase, slices: Sequence[int]) -> np.ndarray:
        """Read only the values, as `read`."""
        return self._preprocessed(case, self.dataset.read(case, slices)[0])

    def labels(self, case: PreparedCase, slices: Sequence[int]) -> np.ndarray:
        """Read only the labels, as `read`."""
        return self._selected(case, self.dataset.read(case, slices)[1])

    def _preprocessed(self, case: PreparedCase, values: np.ndarray) -> np.ndarray:
        size = self.image_size
        if not size or values.shape[1:] == (size, size):
            return intensity.apply_window(values, *self.window(case))
        return intensity.prepare_slices(values, self.window(case), size)

    def _selected(self, case: PreparedCase, labels: np.ndarray) -> np.ndarray:
        size = self.image_size
        if not size or labels.shape[1:] == (size, size):
            if len(self.classes) < len(self.dataset.labels):
                selected = np.zeros(256, np.uint8)
                selected[list(self.classes)] = self.classes
                labels = np.take(selected, labels)
            return labels
        resized = np.zeros((len(labels), size, size), np.uint8)
        for value in self.areas(case):
            resized[intensity.resize_slices(labels == value, size) >= 0.5] = value
        return resized

    def window(self, case: PreparedCase) -> tuple[float, float]:
        """Return (level, width) of a case's window; percentiles are of the whole volume, computed once per process."""
        if "%" not in self._window and case.modality == "CT":
            return intensity.parse_window(self._window)
        if case.id not in self._windows:
            values, _ = self.dataset.read(case, range(case.shape[0]))
            volume = Volume(values, Grid(case.shape, np.array(case.affine)), case.modality)
            self._windows[case.id] = intensity.window_of(volume, self._window)
        return self._windows[case.id]


def classes_to_segment(config: DataConfig, labels: dict[int, str], path: str) -> tuple[int, ...]:
    """Check classes and window of the settings, and return the label values to segment.

    Args:
        config: `classes`, or () for all declared labels, and the window of `preprocessing`.
        labels: declared labels; {} for image files without a `dataset.json`, where any value from 1 to 255 is accepted.
        path: the dataset, for messages.

    Raises:
        UserError: a class is not declared, or the window is not valid.
    """
    voxel = Volume(np.zeros((1, 1, 1), np.float32), Grid((1, 1, 1), np.eye(4)))
    intensity.window_of(voxel, config.preprocessing.window)
    unknown = [value for value in config.classes if value not in (labels or range(1, MAX_LABEL + 1))]
    if unknown:
        known = sorted(labels) or f"1 to {MAX_LABEL}"
        raise UserError(f"data.classes: {path} has no label {unknown[0]}; choose from {known}")
    return config.classes or tuple(sorted(labels))
