"""Settings that fit a prepared dataset: window, slices of a clip and spacing, each with the reason.

The rules are simple ones on the values and extents of the objects. `prepare` prints the settings, and `train` prints
those from which an experiment differs much. Nothing is changed without the user.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, PreprocessingConfig
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.volume.intensity import PERCENTILES, WINDOWS, parse_window
from sam2_3dmed_jax.volume.label_layers import mask_of_values
from sam2_3dmed_jax.volume.modality import CT, dicom_modality

MIN_SLICES, MAX_SLICES = 4, 12  # of a proposed clip; the paper trains on 12
LOST = 0.02  # fraction of the objects' voxels that a proposed window may make black or white
# An experiment differs much if its window makes more than this fraction black or white, ...
MUCH_LOST = 0.1
MUCH_WIDER = 3.0  # ... is wider by this factor, ...
MUCH = 2.0  # ... or if its slices or millimetres differ by this factor.
_CASES, _SLICES = 8, 8  # cases whose values are read, and slices of each, evenly spread
_WIDER_PERCENTILES = ("0.1%,99.9%", "0%,100%")

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProposedSetting:
    """A field of an experiment with the value that fits the dataset."""

    field: str
    value: str  # as the flag takes it
    reason: str  # a clause

    @property
    def flag(self) -> str:
        """The words of the command line."""
        return f"--{self.field} {self.value}"


@dataclass(frozen=True)
class _Objects:
    """The values of the objects of a case."""

    case: PreparedCase
    values: np.ndarray  # float32 [N], on some slices


def proposed_settings(reader: CaseReader) -> list[ProposedSetting]:
    """Return the settings that fit the objects of a dataset, without any if no case has an object."""
    if not (objects := _read_objects(reader)):
        return []
    return [_window(reader, objects), _slices(reader), _slice_mm(reader), _spacing(reader)]


def differing_settings(config: ExperimentConfig, reader: CaseReader) -> list[str]:
    """Return a sentence for each setting of an experiment that differs much from the proposed one.

    Args:
        config: the experiment.
        reader: of its data.
    """
    if not (objects := _read_objects(reader)):
        return []
    if isinstance(config.model, ModelConfig):
        found = [_differing_window(reader, objects), _differing_slices(config.data, reader)]
        if config.model.srpp and config.model.slice_position.unit == "mm":
            found.append(_differing_mm((config.model.slice_position.scale,), _slice_mm(reader)))
    else:
        found = [_differing_window(reader, objects), _differing_mm(config.model.spacing, _spacing(reader))]
    return [sentence for sentence in found if sentence]


def _read_objects(reader: CaseReader) -> list[_Objects]:
    usable = [case for case in reader.dataset.cases if reader.areas(case)]
    segmented = sorted({value for target in reader.targets for value in target})
    objects = []
    for case in _spread(usable, _CASES):
        area = np.sum(list(reader.areas(case).values()), axis=0)
        values, labels = reader.dataset.read(case, _spread(np.flatnonzero(area).tolist(), _SLICES))
        if (inside := values[mask_of_values(labels, segmented)]).size:
            objects.append(_Objects(case, inside))
    return objects


def _spread(items: list[Item], most: int) -> list[Item]:
    return items[:: -(-len(items) // most)] if items else []


def _lost(reader: CaseReader, objects: Sequence[_Objects], window: str | None = None) -> float:
    """Return the fraction of the objects' voxels that a window makes black or white, the mean over cases.

    Args:
        reader: of the dataset.
        objects: of some cases.
        window: as `data.preprocessing.window`; None: the reader's own.
    """
    if window is not None:
        reader = CaseReader(reader.dataset, DataConfig(preprocessing=PreprocessingConfig(window)), reader.image_size)
    fractions = []
    for each in objects:
        level, width = reader.window(each.case)
        fractions.append(np.mean(np.abs(each.values - level) > width / 2))
    return float(np.mean(fractions))


def _window(reader: CaseReader, objects: Sequence[_Objects]) -> ProposedSetting:
    field = "data.preprocessing.window"
    if not all(dicom_modality(each.case.modality) == CT for each in objects):
        named = (PERCENTILES, *_WIDER_PERCENTILES)
        fitting = next((name for name in named if _lost(reader, objects, name) <= LOST), named[-1])
        return ProposedSetting(
            field, fitting, f"these percentiles of each scan show {1 - LOST:.0%} of the voxels of the objects"
        )
    low, high = np.percentile(np.concatenate([each.values for each in objects]), (1, 99)).tolist()
    values = f"whose values are {low:.0f} to {high:.0f} HU (percentiles 1 and 99)"
    by_width = sorted(WINDOWS, key=lambda name: (WINDOWS[name][1], _lost(reader, objects, name)))
    for name in by_width:
        if _lost(reader, objects, name) <= LOST:
            reason = f"the narrowest named window that shows {1 - LOST:.0%} of the voxels of the objects, {values}"
            return ProposedSetting(field, name, reason)
    level, width = round((low + high) / 2), 2 * max(round(high - low), 1)
    return ProposedSetting(field, f"{level},{width}", f"no named window shows the objects, {values}")


def _differing_window(reader: CaseReader, objects: Sequence[_Objects]) -> str:
    window, lost = reader.preprocessing.window, _lost(reader, objects)
    if lost > MUCH_LOST:
        problem = f"makes {lost:.0%} of the voxels of the objects black or white"
        return _sentence(window, problem, _window(reader, objects))
    if "%" in window:  # follows the values of each scan
        return ""
    width, proposed = parse_window(window)[1], _window(reader, objects)
    if proposed.value in WINDOWS and width > MUCH_WIDER * parse_window(proposed.value)[1]:
        return _sentence(window, f"is {width:g} HU wide, which leaves the objects little contrast", proposed)
    return ""


def _slices(reader: CaseReader) -> ProposedSetting:
    extent = float(np.median([length for case in reader.dataset.cases for length in _extents(reader, case)]))
    to_end = math.ceil(extent / 2)
    reason = f"objects extend over {extent:g} slices (median), so that a click in the middle is {to_end} from the end"
    return ProposedSetting("data.slices", str(min(max(to_end + 1, MIN_SLICES), MAX_SLICES)), reason)


def _extents(reader: CaseReader, case: PreparedCase) -> Iterator[int]:
    """Yield the largest number of consecutive slices of each object of a case."""
    for area in reader.areas(case).values():
        edges = np.flatnonzero(np.diff(np.concatenate([[False], area > 0, [False]])))
        yield int((edges[1::2] - edges[::2]).max())


def _differing_slices(data: DataConfig, reader: CaseReader) -> str:
    proposed = _slices(reader)
    slices, fitting = data.slices, int(proposed.value)
    reach = (slices - 1) * data.clips.max_stride + 1
    if MUCH * reach < fitting:
        return _sentence(str(slices), "makes clips that end long before the objects do", proposed)
    if slices > MUCH * fitting:
        return _sentence(str(slices), "makes clips that are mostly without the objects", proposed)
    return ""


def _slice_mm(reader: CaseReader) -> ProposedSetting:
    mm = float(np.median([case.spacing[0] for case in reader.dataset.cases]))
    reason = "the median distance of two slices in mm, with --model.slice_position.unit mm"
    return ProposedSetting("model.slice_position.scale", f"{mm:.4g}", reason)


def _spacing(reader: CaseReader) -> ProposedSetting:
    """Propose the median spacing before resampling, as nnU-Net does."""
    affines = [case.content.affine if case.content else case.affine for case in reader.dataset.cases]
    spacing = np.median([np.linalg.norm(np.array(affine)[:3, :3], axis=0) for affine in affines], axis=0)
    words = [f"{mm:.4g}" for mm in spacing]
    reason = f"the median voxel in mm, for a U-Net, with data of prepare --spacing {','.join(words)}"
    return ProposedSetting("model.spacing", " ".join(words), reason)


def _differing_mm(values: Sequence[float], proposed: ProposedSetting) -> str:
    pairs = zip(values, map(float, proposed.value.split()), strict=True)
    if all(1 / MUCH <= value / fitting <= MUCH for value, fitting in pairs):
        return ""
    return _sentence(" ".join(f"{value:g}" for value in values), "is far from the voxels of this dataset", proposed)


def _sentence(value: str, problem: str, proposed: ProposedSetting) -> str:
    return f"{proposed.field} {value} {problem}; {proposed.flag} would fit better ({proposed.reason})"
