"""Reader of prepared cases for the model: windowed slices of S x S pixels, or of the stored size, and their labels.

The preprocessing is the one of prediction (`volume.intensity`). Only the window of each case is cached.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.config import DataConfig, PreprocessingConfig
from sam2_3dmed_jax.data.dataset_json import MAX_LABEL
from sam2_3dmed_jax.data.prepared import PreparedCase, PreparedDataset
from sam2_3dmed_jax.errors import CHOICES, UserError, listed
from sam2_3dmed_jax.volume import intensity, label_classes
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.label_classes import Target
from sam2_3dmed_jax.volume.label_layers import mask_of_values
from sam2_3dmed_jax.volume.modality import CT, dicom_modality, parse_modality, word_of

MODALITY_FIELD = "data.preprocessing.modality"
MAX_TARGETS = 64  # with unions, the bits of the largest unsigned integer


class CaseReader:
    """Reads slices of cases; can be pickled and shared between threads."""

    def __init__(self, dataset: PreparedDataset, config: DataConfig, image_size: int):
        """Check the settings; `image_size` is S, and 0 keeps the stored size.

        Raises:
            UserError: `data.classes` contains a label that the dataset does not declare, the window is not valid, or
                the dataset was prepared as another modality.
        """
        self.dataset, self.image_size = dataset, image_size
        self.targets = targets_to_segment(config, dataset.labels, dataset.path)
        # Pixels of targets that share labels cannot be one label map: bit t of a pixel is then target t.
        self._as_bits = any(len(target) > 1 for target in self.targets)
        self.preprocessing = _of_dataset(dataset, config.preprocessing)
        self._windows: dict[str, tuple[float, float]] = {}
        self.keeps_empty = bool(dataset.settings.get("keep_empty"))  # cases without a target are negatives

    def areas(self, case: PreparedCase) -> dict[Target, np.ndarray]:
        """Return the area on each slice, `[D]` int64 in voxels, of each target that the case contains."""
        none = (0,) * case.shape[0]
        areas = {
            target: np.array([case.areas.get(value, none) for value in target], np.int64).sum(axis=0)
            for target in self.targets
        }
        return {target: area for target, area in areas.items() if area.any()}

    def mask(self, labels: np.ndarray, target: Target) -> np.ndarray:
        """Return the bool mask of a target in labels that `read` or `labels` returned, spatially transformed or not."""
        if not self._as_bits:
            return np.asarray(labels == target[0])
        return np.asarray(labels & labels.dtype.type(1 << self.targets.index(target)) != 0)

    def pixel_mm(self, case: PreparedCase) -> tuple[float, float]:
        """Return (dy, dx) in mm of a pixel of the resized slices."""
        (_, height, width), (_, dy, dx) = case.shape, case.spacing
        size = self.image_size
        return (dy * height / size, dx * width / size) if size else (dy, dx)

    def read(
        self, case: PreparedCase, slices: Sequence[int], crop: tuple[slice, slice] = (slice(None), slice(None))
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read values float32 `[n, S, S]` in [0, 1] and labels `[n, S, S]` of n slices, which `mask` reads.

        Labels are uint8 label values, with 0 for labels that are not segmented, or unsigned integers with one bit per
        target if a target is a union. A resized pixel belongs to a target that covers at least half of it.

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
        resized = bool(size) and labels.shape[1:] != (size, size)
        if not self._as_bits and not resized:
            values = [target[0] for target in self.targets]
            if len(values) < len(self.dataset.labels):
                selected = np.zeros(256, np.uint8)
                selected[values] = values
                labels = np.take(selected, labels)
            return labels
        dtype = np.min_scalar_type((1 << len(self.targets)) - 1) if self._as_bits else np.dtype(np.uint8)
        pixels = np.zeros((len(labels), size, size) if resized else labels.shape, dtype)
        for target in self.areas(case):
            mask = mask_of_values(labels, target)
            if resized:
                mask = intensity.resize_slices(mask, size) >= 0.5
            if self._as_bits:
                pixels[mask] |= dtype.type(1 << self.targets.index(target))
            else:
                pixels[mask] = target[0]
        return pixels

    def window(self, case: PreparedCase) -> tuple[float, float]:
        """Return (level, width) of a case's window; percentiles are of the whole volume, computed once per process."""
        window, modality = self.preprocessing.window, dicom_modality(case.modality)
        if "%" not in window and modality == CT:
            return intensity.parse_window(window)
        if case.id not in self._windows:
            values, _ = self.dataset.read(case, range(case.shape[0]))
            volume = Volume(values, Grid(case.shape, np.array(case.affine), is_canonical=True), modality)
            self._windows[case.id] = intensity.window_of_model(volume, self.preprocessing)
        return self._windows[case.id]


def _of_dataset(dataset: PreparedDataset, preprocessing: PreprocessingConfig) -> PreprocessingConfig:
    """Return the preprocessing of a run on a dataset, as its checkpoint stores it."""
    modalities = {dicom_modality(case.modality) for case in dataset.cases}
    given = parse_modality(preprocessing.modality, MODALITY_FIELD)
    if given and (other := sorted(modalities - {given})):
        raise UserError(
            f"{MODALITY_FIELD} is {word_of(given)}, but {dataset.path} was prepared as {word_of(other[0])}; leave it "
            f"out, or prepare the dataset again with --modality {word_of(given)}"
        )
    return intensity.preprocessing_of(preprocessing, modalities)


def targets_to_segment(config: DataConfig, labels: dict[int, str], path: str) -> tuple[Target, ...]:
    """Check classes and preprocessing of the settings, and return the label values of each object to segment.

    Args:
        config: `classes` and `preprocessing`. Without classes, the targets are those that `evaluate` prompts by default
            (`label_classes.prompted_targets`), so that the trained objects are the prompted ones.
        labels: declared labels; {} for image files without a `dataset.json`, where any value from 1 to 255 is accepted.
        path: the dataset, for messages.

    Raises:
        UserError: a class is not a label or not declared, there are too many, or the window or modality is not valid.
    """
    parse_modality(config.preprocessing.modality, MODALITY_FIELD)
    intensity.check_window(config.preprocessing.window)
    targets = [entry.values for entry in label_classes.class_sets(config.classes, labels)]
    unknown = [v for target in targets for v in target if v not in (labels or range(1, MAX_LABEL + 1))]
    if unknown:
        known = listed(sorted(labels), CHOICES) or f"1 to {MAX_LABEL}"
        raise UserError(f"data.classes: {path} has no label {unknown[0]}; choose from {known}")
    if not targets:
        targets = sorted(label_classes.prompted_targets(label_classes.declared_classes(labels)))
    if len(targets) > MAX_TARGETS and any(len(target) > 1 for target in targets):
        raise UserError(f"data.classes: {len(targets)} classes with unions; give at most {MAX_TARGETS}")
    return tuple(targets)
