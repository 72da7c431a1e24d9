"""A prepared dataset as the model sees it: windowed slices of S x S (or as stored), and the classes to segment.

Values go through the functions that prediction uses (`volume.intensity`). Nothing is kept but each case's window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.dataset_json import MAX_LABEL
from sam2_3dmed_jax.data.prepared import CaseEntry, PreparedDataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import intensity
from sam2_3dmed_jax.volume.geometry import Grid, Volume


class ModelView:
    """Reads slices of cases. It can be pickled, and threads may share it."""

    def __init__(self, dataset: PreparedDataset, config: DataConfig, image_size: int):
        """`image_size` is S; 0 leaves voxels as they are stored.

        Raises:
            UserError: `data.classes` names a label that the dataset does not declare, or the window is none.
        """
        self.dataset, self.image_size = dataset, image_size
        self.classes = classes_of(config, dataset.labels, dataset.path)
        self._window = config.preprocessing.window
        self._windows: dict[str, tuple[float, float]] = {}

    def areas(self, case: CaseEntry) -> dict[int, np.ndarray]:
        """Each class that a case holds, to its area on each slice, `[D]` int64 voxels."""
        return {value: np.array(case.areas[value]) for value in self.classes if any(case.areas.get(value, ()))}

    def pixel_mm(self, case: CaseEntry) -> tuple[float, float]:
        """(dy, dx) of a pixel of a slice as it is seen."""
        (_, height, width), (_, dy, dx) = case.shape, case.spacing
        size = self.image_size
        return (dy * height / size, dx * width / size) if size else (dy, dx)

    def read(
        self, case: CaseEntry, slices: Sequence[int], crop: tuple[slice, slice] = (slice(None), slice(None))
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 `[n, S, S]` in [0, 1] and labels uint8 `[n, S, S]` of n slices; other labels become 0.

        A pixel has a label where at least half of it has. `crop` is of the stored rows and columns.

        Raises:
            UserError: the shard is damaged.
        """
        values, labels = self.dataset.read(case, slices)
        return self._shown(case, values[:, *crop]), self._chosen(case, labels[:, *crop])

    def values(self, case: CaseEntry, slices: Sequence[int]) -> np.ndarray:
        """The values of `read` alone."""
        return self._shown(case, self.dataset.read(case, slices)[0])

    def labels(self, case: CaseEntry, slices: Sequence[int]) -> np.ndarray:
        """The labels of `read` alone."""
        return self._chosen(case, self.dataset.read(case, slices)[1])

    def _shown(self, case: CaseEntry, values: np.ndarray) -> np.ndarray:
        size = self.image_size
        if not size or values.shape[1:] == (size, size):
            return intensity.apply_window(values, *self.window(case))
        return intensity.prepare_slices(values, self.window(case), size)

    def _chosen(self, case: CaseEntry, labels: np.ndarray) -> np.ndarray:
        size = self.image_size
        if not size or labels.shape[1:] == (size, size):
            if len(self.classes) < len(self.dataset.labels):
                kept = np.zeros(256, np.uint8)
                kept[list(self.classes)] = self.classes
                labels = np.take(kept, labels)
            return labels
        small = np.zeros((len(labels), size, size), np.uint8)
        for value in self.areas(case):
            small[intensity.resize_slices(labels == value, size) >= 0.5] = value
        return small

    def window(self, case: CaseEntry) -> tuple[float, float]:
        """(level, width) of a case; percentiles are taken over its whole volume, once a process."""
        if "%" not in self._window and case.modality == "CT":
            return intensity.parse_window(self._window)
        if case.id not in self._windows:
            values, _ = self.dataset.read(case, range(case.shape[0]))
            volume = Volume(values, Grid(case.shape, np.array(case.affine)), case.modality)
            self._windows[case.id] = intensity.window_of(volume, self._window)
        return self._windows[case.id]


def classes_of(config: DataConfig, labels: dict[int, str], path: str) -> tuple[int, ...]:
    """The label values to segment, `data.classes` or all that the dataset at `path` declares; settings are checked.

    A raw dataset without a description declares none (`labels` is empty); then any from 1 to 255 may be named.

    Raises:
        UserError: a value that the dataset does not declare, or a window that is none.
    """
    voxel = Volume(np.zeros((1, 1, 1), np.float32), Grid((1, 1, 1), np.eye(4)))
    intensity.window_of(voxel, config.preprocessing.window)
    unknown = [value for value in config.classes if value not in (labels or range(1, MAX_LABEL + 1))]
    if unknown:
        known = sorted(labels) or f"1 to {MAX_LABEL}"
        raise UserError(f"data.classes: {path} has no label {unknown[0]}; choose from {known}")
    return config.classes or tuple(sorted(labels))
