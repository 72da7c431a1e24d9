"""Automatic start: prompts drawn from a label map, of an automatic method or of an earlier scan of the patient.

Each label is an object, which is prompted by a protocol: clicks, a box, or some slices of the label as masks. Labels of
an earlier scan are placed on the image by millimetres alone; nothing is registered.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from sam2_3dmed_jax.errors import CHOICES, FileWarning, UserError, listed, number_of
from sam2_3dmed_jax.prompts.object_ids import MAX_OBJECT_ID
from sam2_3dmed_jax.prompts.protocols import PROTOCOLS, protocol_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import PromptOrigin, VolumePrompts, VoxelPrompt
from sam2_3dmed_jax.runtime.hashing import sha256_of_file, sha256_of_folder
from sam2_3dmed_jax.volume.case_files import case_files, list_names
from sam2_3dmed_jax.volume.formats import FORMATS, label_folder_suffixes
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import open_labels
from sam2_3dmed_jax.volume.label_classes import LabelSet, parse_label_sets
from sam2_3dmed_jax.volume.label_layers import LabelFile, LabelLayers
from sam2_3dmed_jax.volume.nearest_grid import onto_grid
from sam2_3dmed_jax.volume.nifti import stored_label_names

MASKS = "masks"
START_PROTOCOLS = {
    **{name: PROTOCOLS[name] for name in ("one-click", "box-mid", "one-click-per-component")},
    MASKS: "masks on N slices per object, each the middle one of N equal parts of the slices that show it",
}
DEFAULT_PROTOCOL = "one-click"
MASK_SLICES = 3  # slices of `masks`, by default

_NAME_CHARACTERS = re.compile(r"[^\w .+-]+")  # that names of objects do not have


@dataclass(frozen=True)
class StartSettings:
    """How prompts are drawn from a label map, with the defaults of the flags.

    Attributes:
        protocol: one of `START_PROTOCOLS`; None: `DEFAULT_PROTOCOL`.
        targets: label sets to prompt, as `parse_label_sets` reads; None: all labels.
        names: label value to name, in place of the names in the file.
        mask_slices: slices per object of the protocol `masks`; None: `MASK_SLICES`.
        follow_up: the labels belong to an earlier scan of the patient, on a grid of its own.
        as_flags: messages name the settings as flags of `predict`, not as arguments in Python.
    """

    protocol: str | None = None
    targets: str | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    mask_slices: int | None = None
    follow_up: bool = False
    as_flags: bool = True

    def option(self, name: str) -> str:
        """Return a setting as the user writes it."""
        return f"--{name.replace('_', '-')}" if self.as_flags else name

    def check(self) -> None:
        """Check the settings that need no file.

        Raises:
            UserError: the protocol does not exist, or the number of slices does not fit.
        """
        if self.protocol not in (None, *START_PROTOCOLS):
            known = ", ".join(START_PROTOCOLS)
            raise UserError(f"{self.option('protocol')}: '{self.protocol}' does not exist; choose one of {known}")
        if self.mask_slices is None:
            return
        if self.protocol != MASKS:
            raise UserError(f"{self.option('mask_slices')} is for the protocol {MASKS}; leave it out, or choose that")
        if self.mask_slices < 1:
            raise UserError(f"{self.option('mask_slices')} is {self.mask_slices}; give at least 1 slice per object")


def start_prompts(
    labels: str | os.PathLike[str] | LabelFile, volume: Volume, settings: StartSettings = StartSettings()
) -> VolumePrompts:
    """Return the prompts of the objects in a label map, and their names.

    Args:
        labels: a file of labels; a folder with one mask per object, named as the object; or labels in memory.
        volume: the image to prompt.
        settings: what is prompted, and how.

    Returns:
        Prompts whose object ids are the labels. A union of labels has the id of its first one.

    Raises:
        UserError: the labels are empty, or are not on the image; a target is not among them; or as `check`.
    """
    settings.check()
    source = _open(labels, volume.grid, settings)
    origin = PromptOrigin(
        None if isinstance(labels, LabelFile) else os.path.abspath(labels),
        None if isinstance(labels, LabelFile) else _sha256(Path(labels)),
        settings.protocol or DEFAULT_PROTOCOL,
        settings.follow_up,
    )
    result = VolumePrompts()
    empty: list[str] = []
    outside: list[str] = []
    for entry in _chosen(source, settings):
        object_id, name = entry.values[0], _name(entry, source.names)
        mask = source.mask(entry.values)
        if mask.any():
            if name:
                result.names[object_id] = name
            own = replace(origin, labels=entry.values)
            result.prompts.extend(replace(prompt, origin=own) for prompt in _drawn(mask, volume, object_id, settings))
        else:
            (empty if source.is_empty(entry.values) else outside).append(name or entry.text)
    _report(source, settings, volume, bool(result.prompts), empty, outside)
    return result


def _report(
    source: _Source, settings: StartSettings, volume: Volume, found: bool, empty: list[str], outside: list[str]
) -> None:
    """Warn about objects that are left out.

    Raises:
        UserError: all objects are left out, or a target has no voxel.
    """
    image = volume.grid.source or "the image"
    if outside and (settings.targets or not found):
        raise UserError(
            f"{source.path} does not overlap with {image}: no voxel of {listed(outside)} is inside; give an earlier "
            "scan of the same patient and region, in the same coordinates"
        )
    if not found or (empty and settings.targets):
        what = f"{listed(empty)} in it" if empty and settings.targets else "it"
        raise UserError(f"{source.path}: {what} is empty; give labels with a voxel in each object")
    for names, reason in ((empty, "they are empty"), (outside, f"they are outside of {image}")):
        if names:
            warnings.warn(
                f"{source.path}: {number_of(len(names), 'object')} left out, because {reason}: {listed(names)}",
                FileWarning,
                stacklevel=3,
            )


def _chosen(source: _Source, settings: StartSettings) -> list[LabelSet]:
    """Return the label sets to prompt.

    Raises:
        UserError: a label is not in the file, is in two sets or cannot be an object id.
    """
    option, present = settings.option("targets"), source.values()
    if settings.targets is None:
        sets = [LabelSet((value,), "", str(value)) for value in present]
    else:
        sets = parse_label_sets(settings.targets, source.names, option)
    chosen: set[int] = set()
    for entry in sets:
        for value in entry.values:
            if value not in present:
                known = [_name(LabelSet((each,), "", ""), source.names) or str(each) for each in present]
                raise UserError(
                    f"{option}: {source.path} has no voxel of '{entry.text}'; choose from {listed(known, CHOICES)}"
                )
            if value in chosen:
                raise UserError(f"{option}: label {value} is in two objects; give each label once")
            if not 1 <= value <= MAX_OBJECT_ID:
                raise UserError(
                    f"{source.path} has the label {value}, which is not an object id; renumber it to 1 to "
                    f"{MAX_OBJECT_ID}, or choose others with {option}"
                )
            chosen.add(value)
    return sets


def _drawn(mask: np.ndarray, volume: Volume, object_id: int, settings: StartSettings) -> list[VoxelPrompt]:
    """Return the prompts of one object by the protocol."""
    present = np.flatnonzero(mask.any((1, 2)))
    if settings.protocol == MASKS:
        slices = middle_slices(present, settings.mask_slices or MASK_SLICES)
        # Copies, because a view would keep the mask of the whole volume in memory for as long as a prompt is kept.
        return [VoxelPrompt(object_id, index, mask=mask[index].copy()) for index in slices]
    first = int(present[0])
    part = mask[first : present[-1] + 1]
    prompts = protocol_prompts(settings.protocol or DEFAULT_PROTOCOL, part, volume.spacing, object_id)
    return [replace(prompt, slice=first + prompt.slice) for prompt in prompts]


def middle_slices(present: np.ndarray, count: int) -> list[int]:
    """Return the middle one of each of `count` equal parts of the slices that show an object, or all if they are few.

    Args:
        present: their indices, sorted, at least one.
        count: slices to return, at most.
    """
    parts = np.array_split(present, min(count, len(present)))
    return [int(part[len(part) // 2]) for part in parts]


class _Source(Protocol):
    """Labels in the frame of the image."""

    @property
    def path(self) -> str:
        """The file or folder."""

    @property
    def names(self) -> Mapping[int, str]:
        """Names of labels; those of other values are not known."""

    def values(self) -> Sequence[int]:
        """Return the labels that may be prompted."""

    def mask(self, values: Sequence[int]) -> np.ndarray:
        """Return the voxels of the image that have one of some labels, bool `[D, H, W]`."""

    def is_empty(self, values: Sequence[int]) -> bool:
        """Return whether the labels have no voxel in the file; they may have voxels outside of the image."""


class _LabelMap:
    """A file of labels."""

    def __init__(self, file: LabelFile, names: Mapping[int, str], grid: Grid, settings: StartSettings):
        self.path, self.names = file.path, names
        self._own, self._placed = _read(file, grid, settings)

    def values(self) -> Sequence[int]:
        return self._own.values()

    def mask(self, values: Sequence[int]) -> np.ndarray:
        return self._placed.mask(values)

    def is_empty(self, values: Sequence[int]) -> bool:
        return not self._own.mask(values).any()


class _MaskFolder:
    """A folder with one mask per object, as TotalSegmentator writes; a label is the position of its file, from 1.

    If names of labels are given, a label has the value of the name of its file.
    """

    def __init__(self, folder: Path, grid: Grid, settings: StartSettings):
        self.path = str(folder)
        found = case_files(list_names(folder), label_folder_suffixes(), folder)
        if not found:
            endings = ", ".join(label_folder_suffixes())
            raise UserError(f"{folder} has no masks ({endings}); give a label map, or a folder with a mask per object")
        values = {name: value for value, name in settings.names.items()}
        if unknown := [name for name in found if values and name not in values]:
            raise UserError(
                f"{settings.option('names')}: {folder} has a mask {unknown[0]}, whose label is not declared; add it"
            )
        numbers = {values.get(name, number): name for number, name in enumerate(found, 1)}
        self.names = dict(sorted(numbers.items()))
        files = {value: folder / found[name] for value, name in numbers.items()}
        # A mask is read when it is needed, so that no two of a hundred are in memory together.
        self._read: Callable[[int], tuple[LabelLayers, LabelLayers]] = functools.lru_cache(maxsize=1)(
            lambda value: _read(open_labels(files[value]), grid, settings)
        )

    def values(self) -> Sequence[int]:
        return list(self.names)

    def mask(self, values: Sequence[int]) -> np.ndarray:
        first, *others = values
        mask = self._read(first)[1].inside()
        for value in others:
            mask |= self._read(value)[1].inside()
        return mask

    def is_empty(self, values: Sequence[int]) -> bool:
        return not any(self._read(value)[0].inside().any() for value in values)


def _open(labels: str | os.PathLike[str] | LabelFile, grid: Grid, settings: StartSettings) -> _Source:
    """Open labels, whose names are the given ones or those in the file."""
    if not isinstance(labels, LabelFile):
        in_folder = any(entry.detects(labels) for entry in FORMATS if entry.label_reader)  # one DICOM-SEG in a folder
        if Path(labels).is_dir() and not in_folder:
            return _MaskFolder(Path(labels), grid, settings)
        file = open_labels(labels)
        names = settings.names or file.names or stored_label_names(labels)
    else:
        file, names = labels, settings.names or labels.names
    return _LabelMap(file, _different(names), grid, settings)


def _different(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names that are not empty; names that two labels share are followed by the label."""
    stated = {value: name.strip() for value, name in names.items() if name.strip()}
    known = list(stated.values())
    return {value: f"{name} {value}" if known.count(name) > 1 else name for value, name in stated.items()}


def _read(file: LabelFile, grid: Grid, settings: StartSettings) -> tuple[LabelLayers, LabelLayers]:
    """Read labels, and return them on a grid of their own, if they have one, and on the grid of the image.

    Raises:
        UserError: the grids differ, and the labels are not of an earlier scan; or the file is damaged.
    """
    own = file.grid
    if settings.follow_up and own is not None:
        layers = file.read(own)
        return layers, layers.map_layers(lambda layer: onto_grid(layer, own, grid))
    try:
        file.check(grid)
    except UserError as error:
        raise UserError(f"{error}, or give {settings.option('follow_up')} for labels of an earlier scan") from None
    layers = file.read(grid)
    return layers, layers


def _name(entry: LabelSet, names: Mapping[int, str]) -> str:
    """Return the name of an object, with characters that names of objects have, or "" if none of its labels has one."""
    known = [names.get(value, "") for value in entry.values]
    name = entry.name or ("+".join(own or str(value) for own, value in zip(known, entry.values, strict=True)))
    if not entry.name and not any(known):
        return ""
    return " ".join(_NAME_CHARACTERS.sub(" ", name).split()).lstrip(" .+-")[:64]


def _sha256(path: Path) -> str:
    return sha256_of_folder(path) if path.is_dir() else sha256_of_file(path)
