"""An image with named objects and the prompts of each, which may be added and undone at any time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.dataset_json import read_label_names
from sam2_3dmed_jax.errors import UserError, listed, naming
from sam2_3dmed_jax.pictures.colours import COLOURS
from sam2_3dmed_jax.prompts.automatic_start import StartSettings, start_prompts
from sam2_3dmed_jax.prompts.files import read_prompt_files
from sam2_3dmed_jax.prompts.flags import check_started_objects
from sam2_3dmed_jax.prompts.object_ids import check_object_id, check_object_name
from sam2_3dmed_jax.prompts.scribbles import stroke_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import (
    Triple,
    VolumePrompts,
    VoxelPrompt,
    box_prompts,
    clipped_box,
    mask_prompts,
    merge_prompts,
    point_prompts,
    voxel_of_mm,
)
from sam2_3dmed_jax.scan.history import History, PromptState
from sam2_3dmed_jax.scan.images import open_label_map, read_label_map
from sam2_3dmed_jax.scan.prompt_files import PromptFiles
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel, parse_color, segment_codes
from sam2_3dmed_jax.volume.geometry import Volume, plane_in_file


class PromptedImage:
    """The objects and prompts of one image, in its coordinates, with undo; nothing here runs a model."""

    def __init__(self, volume: Volume):
        """Begin without objects.

        Args:
            volume: the image.
        """
        self._volume = volume
        self._objects: dict[int, ObjectLabel] = {}
        self._history = History()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the axes (i, j, k) of the image as stored."""
        return self._volume.grid.shape

    @property
    def affine(self) -> np.ndarray:
        """`[4, 4]` float64, voxel index (i, j, k, 1) to RAS millimetres."""
        return self._volume.grid.affine

    @property
    def volume(self) -> Volume:
        """The voxels of the image in canonical order, with the grid of its file; not to be changed."""
        return self._volume

    @property
    def slice_axis(self) -> int:
        """The axis of the image that slices are counted along."""
        return "ijk".index(plane_in_file(self._volume.grid, 0, 0)[0])

    # Objects

    @property
    def objects(self) -> dict[int, ObjectLabel]:
        """Name, SNOMED CT code and colour of each object, by its id; unnamed objects have a name with their id."""
        return {number: self._label(number) for number in sorted(self._objects)}

    def name_object(self, object: int, name: str, color: str = "") -> None:
        """Name an object, whose id may be new; prompts and masks may then be given and asked for by the name.

        Args:
            object: its id, 1 to 65535.
            name: up to 64 letters, digits and ' .+-_'; organs have SNOMED CT codes and colours by their names.
            color: "#rrggbb", in place of the colour that follows from the name or the id.

        Raises:
            UserError: another object has the name, or an argument has another form.
        """
        with naming("object"):
            number = check_object_id(object)
        label = ObjectLabel(check_object_name(name), color=parse_color(color) if color else "")
        if any(other.name == name and key != number for key, other in self._objects.items()):
            raise UserError(f"name: another object is '{name}' already; give each object its own name")
        self._objects[number] = label

    def _label(self, number: int) -> ObjectLabel:
        label = self._objects[number]
        color = segment_codes(label).color or COLOURS[(number - 1) % len(COLOURS)]
        return ObjectLabel(label.name or f"object {number}", label.code, color)

    def _object_id(self, object: int | str, new: bool) -> int:
        """Return the id of an object by id or name; an id may be `new`."""
        if isinstance(object, str):
            for number, label in self._objects.items():
                if label.name == object:
                    return number
        elif isinstance(object, int | np.integer) and (new or object in self._objects):
            with naming("object"):
                return check_object_id(object)
        known = listed([f"{number} ({label.name})" for number, label in self.objects.items()]) or "none yet"
        raise UserError(f"object: '{object}' does not exist; objects are {known}; name new ones with name_object")

    # Prompts

    @property
    def prompts(self) -> tuple[VoxelPrompt, ...]:
        """The current prompts on canonical slices; another tuple after each change, and the same one until then."""
        return self._history.current.prompts

    @property
    def can_undo(self) -> bool:
        """Whether `undo` has an effect."""
        return self._history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether `redo` has an effect."""
        return self._history.can_redo

    def click(
        self,
        xyz: Sequence[float],
        inside: bool = True,
        *,
        object: int | str = 1,
        mm: bool = False,
        corrects_masks: bool = False,
    ) -> None:
        """Add a click.

        Args:
            xyz: voxel index of the image as stored, 0-based; or RAS millimetres.
            inside: whether it is inside of the object.
            object: its id, or its name.
            mm: `xyz` are millimetres.
            corrects_masks: on a slice with a drawn mask, the mask becomes its box, and masks on the next slices are
                left out, so that the click has an effect.

        Raises:
            UserError: the click is outside of the image, the name does not exist, or a mask is on this slice.
        """
        number = self._object_id(object, new=True)
        with naming("click"):
            points = [(self._voxel(xyz, mm), int(bool(inside)), number)]
            self._add(point_prompts(self._volume.grid, points), corrects_masks)

    def box(
        self,
        first: Sequence[float],
        second: Sequence[float],
        *,
        object: int | str = 1,
        mm: bool = False,
        corrects_masks: bool = False,
    ) -> None:
        """Add a box, which becomes one box on each slice that it covers, in place of earlier boxes there.

        Args:
            first: a corner, as `xyz` of `click`; voxels are inclusive.
            second: the opposite corner.
            object: its id, or its name.
            mm: the corners are RAS millimetres; a box that reaches beyond the image is cut at its border.
            corrects_masks: as in `click`.

        Raises:
            UserError: the box is outside of the image, the name does not exist, or a mask is on one of its slices.
        """
        number, grid = self._object_id(object, new=True), self._volume.grid
        with naming("box"):
            low, high = self._voxel(first, mm), self._voxel(second, mm)
            if mm:
                low, high = clipped_box(grid, low, high)
            self._add(box_prompts(grid, [(low, high, number)]), corrects_masks)

    def draw(self, mask: Any, *, object: int | str | None = None) -> None:
        """Add a drawn mask, in place of earlier prompts on the slices where it is drawn.

        Args:
            mask: on the grid of the image, a file, an image, or an array `[i, j, k]`. Its values are object ids.
            object: id or name of the object that all values except 0 belong to.

        Raises:
            UserError: the mask is empty, has other values, or is on another grid; or the name does not exist.
        """
        number = None if object is None else self._object_id(object, new=True)
        with naming("mask"):
            layers = read_label_map(mask, self._volume)
            maps = layers.layers if number is None else (np.where(layers.inside(), np.uint16(number), np.uint16(0)),)
            self._add([prompt for labels in maps for prompt in mask_prompts(labels)])

    def scribble(
        self, inside: Any = None, outside: Any = None, *, object: int | str = 1, corrects_masks: bool = False
    ) -> None:
        """Add strokes, from which clicks are sampled.

        Args:
            inside: strokes inside of the object: all values except 0 of a file, an image, or an array `[i, j, k]`.
            outside: strokes outside of it.
            object: its id, or its name.
            corrects_masks: as in `click`.

        Raises:
            UserError: strokes are missing or on another grid, the name does not exist, or a mask is on a slice.
        """
        number = self._object_id(object, new=True)
        with naming("scribble"):
            given = [(strokes, label) for strokes, label in ((inside, 1), (outside, 0)) if strokes is not None]
            prompts = [
                prompt
                for strokes, label in given
                for prompt in stroke_prompts(
                    read_label_map(strokes, self._volume).inside(), number, label, self._volume.spacing
                )
            ]
            if not prompts:
                raise UserError("the drawing is empty; draw strokes inside or outside of the object")
            self._add(merge_prompts(prompts), corrects_masks)

    def prompt_from(
        self,
        labels: Any,
        *,
        protocol: str = "one-click",
        targets: str | None = None,
        names: Mapping[int, str] | str | os.PathLike[str] | None = None,
        mask_slices: int | None = None,
        follow_up: bool = False,
    ) -> None:
        """Add prompts that are drawn from a label map of an automatic method or of an earlier scan, and name objects.

        Each label becomes an object with the same id.

        Args:
            labels: a file of a format that `predict` reads, a folder with one mask per object, an image, or an array
                `[i, j, k]` on the grid of the image.
            protocol: "one-click", "box-mid", "one-click-per-component", or "masks", which gives slices of the labels.
            targets: labels to segment, by name or value, such as "liver,2"; None: all.
            names: label value to name, or a JSON file of them; by default the names that the file has.
            mask_slices: slices per object of the protocol "masks"; None: 3.
            follow_up: the labels belong to an earlier scan of the patient, and are placed on the image by millimetres.

        Raises:
            UserError: the labels are empty or not on the image, a target is not among them, an object has prompts
                already, or a name belongs to another object.
        """
        if isinstance(names, str | os.PathLike):
            names = read_label_names(names, "names")
        settings = StartSettings(protocol, targets, names or {}, mask_slices, follow_up, as_flags=False)
        given = labels if isinstance(labels, str | os.PathLike) else open_label_map(labels, self._volume)
        found = start_prompts(given, self._volume, settings)
        check_started_objects(found, self.prompts, "labels")
        owners = {label.name: number for number, label in self._objects.items() if label.name}
        if taken := [name for number, name in found.names.items() if owners.get(name, number) != number]:
            raise UserError(f"names: another object is '{taken[0]}' already; rename it, or choose others with targets")
        self._add(found.prompts)
        for number, name in found.names.items():
            if not self._objects[number].name:
                self.name_object(number, name)

    def clear(self, object: int | str | None = None) -> None:
        """Remove the prompts of one object, or of all; `undo` brings them back.

        Raises:
            UserError: the object does not exist.
        """
        current = self._history.current
        empty = PromptState() if object is None else current.without_object(self._object_id(object, new=False))
        self._history.push(empty)

    def reset(self) -> None:
        """Remove all prompts and objects for good: `undo` brings nothing back."""
        self._history, self._objects = History(), {}

    def undo(self) -> bool:
        """Return to the prompts before the last change, and return False before the first change; encodes nothing."""
        return self._history.undo()

    def redo(self) -> bool:
        """Bring back the prompts that `undo` removed last, and return False if there are none."""
        return self._history.redo()

    def save_prompts(self, path: str | os.PathLike[str]) -> None:
        """Write the prompts and the names of objects, as `predict --prompts` and `load_prompts` read them.

        Drawn masks become label maps next to the file, such as prompts.mask-1.nii.gz. Without prompts, the list of
        objects is empty.

        Args:
            path: *.json.

        Raises:
            UserError: a file cannot be written.
        """
        self.prompt_files(path).write(self.prompt_set())

    def prompt_set(self) -> VolumePrompts:
        """Return the current prompts, one per object and slice, and what is known about the objects."""
        named = {number: label for number, label in self._objects.items() if label.name}
        names = {number: label.name for number, label in named.items()}
        colors = {number: label.color for number, label in named.items() if label.color}
        return VolumePrompts(merge_prompts(self.prompts), names, colors=colors)

    def prompt_files(self, path: str | os.PathLike[str]) -> PromptFiles:
        """Return the files that `save_prompts` writes, for a program that saves `prompt_set` after each change."""
        return PromptFiles(path, self._volume)

    def load_prompts(self, path: str | os.PathLike[str]) -> None:
        """Replace all prompts by the prompts of a file, as one change, and name its objects.

        Args:
            path: prompts in a format that `predict --prompts` reads, such as a file of `save_prompts`.

        Raises:
            UserError: the file does not fit.
        """
        found = read_prompt_files([path], self._volume)
        self._history.push(PromptState().with_prompts(found.prompts) if found.prompts else PromptState())
        for object_id, label in found.labels().items():
            self._objects[object_id] = replace(label, name=found.names.get(object_id, ""))

    def _voxel(self, xyz: Sequence[float], mm: bool) -> Triple:
        try:
            x, y, z = (float(number) for number in xyz)
        except (TypeError, ValueError):
            raise UserError(f"{xyz!r} is not a place; give three numbers (x, y, z)") from None
        return voxel_of_mm(self._volume.grid, (x, y, z)) if mm else (x, y, z)

    def _add(self, prompts: Sequence[VoxelPrompt], corrects_masks: bool = False) -> None:
        self._history.push(self._history.current.with_prompts(prompts, corrects_masks))
        for prompt in prompts:
            self._objects.setdefault(prompt.object_id, ObjectLabel(""))
