"""Reader of prepared cases for the model: stored slices and labels, and the windows that apply to them.

The preprocessing is the one of prediction (`volume.intensity`). Only the window of each case is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.config import DataConfig, PreprocessingConfig
from sam2_3dmed_jax.data.dataset_json import MAX_LABEL
from sam2_3dmed_jax.data.prepared import PreparedCase, PreparedDataset
from sam2_3dmed_jax.errors import CHOICES, UserError, listed
from sam2_3dmed_jax.volume import intensity, label_classes
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.label_classes import Target
from sam2_3dmed_jax.volume.modality import CT, dicom_modality, parse_modality, word_of
from sam2_3dmed_jax.volume.zoom import Region

MODALITY_FIELD = "data.preprocessing.modality"


class StoredSlices(NamedTuple):
    """The form of stored slices in a batch. It is the same for all cases, because compiled steps have static shapes."""

    rows: int  # of the largest slice of the dataset; smaller ones are padded
    columns: int
    resized: bool  # False: each slice has the image size already, and no clip is zoomed in


TYPICAL_SLICES = StoredSlices(512, 512, resized=True)  # of CT, for a step that is compiled without a dataset


class CaseReader:
    """Reads slices of cases; can be pickled and shared between threads."""

    def __init__(self, dataset: PreparedDataset, config: DataConfig, image_size: int):
        """Check the settings; `image_size` is S, and 0 keeps the stored size.

        Raises:
            UserError: `data.classes` contains a label that the dataset does not declare, the window is not valid, or
                the dataset was prepared as another modality.
        """
        self.dataset, self.image_size = dataset, image_size
        self._zooms = config.clips.zoom_probability > 0
        self.targets = targets_to_segment(config, dataset.labels, dataset.path)
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

    def pixel_mm(self, case: PreparedCase, region: Region | None = None) -> tuple[float, float]:
        """Return (dy, dx) in mm of a pixel of the resized slices, or of a resized region of them."""
        (_, height, width), (_, dy, dx) = case.shape, case.spacing
        if region is not None:
            height, width = region.shape
        size = self.image_size
        return (dy * height / size, dx * width / size) if size else (dy, dx)

    @property
    def stored_slices(self) -> StoredSlices:
        """The form of the slices of all cases of the dataset in a batch."""
        shapes = {case.shape[1:] for case in self.dataset.cases}
        rows, columns = (max(sizes) for sizes in zip(*shapes, strict=True))
        return StoredSlices(rows, columns, resized=self._zooms or shapes != {(self.image_size, self.image_size)})

    def read(self, case: PreparedCase, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read stored values int16 `[n, H, W]`, to which `stored_window` applies, and labels uint8 `[n, H, W]`.

        Raises:
            UserError: the shard is damaged.
        """
        return self.dataset.read_stored(case, slices)

    def values(self, case: PreparedCase, slices: Sequence[int]) -> np.ndarray:
        """Read slices as the model takes them, float32 `[n, S, S]` in [0, 1].

        Raises:
            UserError: the shard is damaged.
        """
        values, size = self.dataset.read(case, slices)[0], self.image_size
        if not size:
            return intensity.apply_window(values, *self.window(case))
        return intensity.prepare_slices(values, self.window(case), size)

    def stored_window(self, case: PreparedCase) -> np.ndarray:
        """Return the lower end and the width of a case's window in its stored values, float32 `[2]`."""
        level, width = self.window(case)
        return np.array(intensity.window_ends(((level - case.intercept) / case.slope, width / case.slope)))

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
        UserError: a class is not a label or not declared, or the window or modality is not valid.
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
    return tuple(targets)
