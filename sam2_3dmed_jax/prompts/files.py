"""Prompts from JSON files: the format of this project, and markups of 3D Slicer.

In this project's format, every key but `objects` is optional. `voxel` are 0-based voxel indices of the image file as
stored, `mm` are RAS millimetres, and file names are relative to the JSON file:

    {"objects": [{
        "id": 1, "name": "spleen", "code": "78961009", "color": "#9d6ca2",
        "points": [{"voxel": [60, 45, 30], "label": 1}, {"mm": [-80.5, 12, 140], "label": 0}],
        "boxes": [{"voxel": [50, 40, 28, 70, 52, 33]}, {"mm": [-95, 0, 130, -60, 30, 150]}],
        "mask": "drawn.nii.gz",
        "scribble": {"file": "strokes.nii.gz", "inside": 1, "outside": 2}
    }]}

A mask or a scribble is a label map on the grid of the volume. All values except 0 are inside; `{"file": ..., "value":
4}` selects one value of a mask, and `inside` and `outside` select the values of a scribble. Objects without an id are
numbered by their position in the list, from 1. `code` is of SNOMED CT; code and colour follow from the names of organs
and lesions if they are not given (`volume.anatomy_codes`).

In markups, a node is an object, and nodes with the same name are one object: a point list and a ROI may describe it
together.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.errors import UserError, listed, naming
from sam2_3dmed_jax.prompts.object_ids import MAX_OBJECT_ID, OBJECT_NAME
from sam2_3dmed_jax.prompts.prompt_types import PROMPT_TYPES, JsonObject
from sam2_3dmed_jax.prompts.slicer_markups import check_units, node_name
from sam2_3dmed_jax.prompts.voxel_prompts import VolumePrompts, drawn_slices
from sam2_3dmed_jax.runtime.json_fields import Field, read_fields
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel, parse_code, parse_color
from sam2_3dmed_jax.volume.geometry import Grid, Volume, canonical_to_voxel
from sam2_3dmed_jax.volume.io import read_label_layers
from sam2_3dmed_jax.volume.label_layers import LabelLayers


def read_prompt_files(paths: Sequence[str | os.PathLike[str]], volume: Volume) -> VolumePrompts:
    """Read the prompts of several files, records of segmentations too; markups are numbered across the files.

    Raises:
        UserError: a file does not fit, by file and field; an object has two names; or two objects share a name.
    """
    merged = VolumePrompts()
    node_ids: dict[str, int] = {}
    for path in paths:
        root = read_fields(path)
        if isinstance(root.value, dict) and "prompts" in root.value:  # the record of a segmentation, SEG.json
            root = root.fields()["prompts"]
        is_markups = isinstance(root.value, dict) and "markups" in root.value
        of_file = _read_markups(root, volume.grid, node_ids) if is_markups else _read_objects(root, volume)
        _add(merged.names, of_file.names, path)
        _add(merged.codes, of_file.codes, path)
        _add(merged.colors, of_file.colors, path)
        merged.prompts.extend(of_file.prompts)
        merged.files.extend(of_file.files)
    if len(set(merged.names.values())) < len(merged.names):
        raise UserError(f"{listed(paths)}: two objects have the same name; give each its own name")
    return merged


def add_labels(
    prompts: VolumePrompts, labels: Mapping[int, ObjectLabel], source: str | os.PathLike[str]
) -> VolumePrompts:
    """Return prompts with further names, codes and colours of objects.

    Args:
        prompts: of one volume.
        labels: by object id.
        source: the file or flag with the labels, for messages.

    Raises:
        UserError: an object has another name, code or colour already.
    """
    added = replace(prompts, names={**prompts.names}, codes={**prompts.codes}, colors={**prompts.colors})
    for known, new in (
        (added.names, {number: label.name for number, label in labels.items()}),
        (added.codes, {number: label.code for number, label in labels.items() if label.code}),
        (added.colors, {number: label.color for number, label in labels.items() if label.color}),
    ):
        _add(known, new, source)
    return added


def _add(known: dict[int, str], new: Mapping[int, str], path: str | os.PathLike[str]) -> None:
    """Add names, codes or colours of objects in place.

    Raises:
        UserError: an object has another one already.
    """
    for object_id, value in new.items():
        if known.setdefault(object_id, value) != value:
            raise UserError(
                f"{path}: object {object_id} is '{value}', but '{known[object_id]}' before; give it another id"
            )


def objects_json(prompts: VolumePrompts, grid: Grid) -> dict[str, Any]:
    """Return prompts in this project's format, so that `read_prompt_files` reads the same prompts again.

    Scribbles have become points. A mask that was not read from a file cannot be in it, and is left out.

    Args:
        prompts: of one volume.
        grid: of the volume.
    """
    objects: dict[int, dict[str, Any]] = {}
    for prompt in prompts.prompts:
        entry = objects.setdefault(prompt.object_id, {"id": prompt.object_id})
        if prompt.object_id in prompts.names:
            entry["name"] = prompts.names[prompt.object_id]
        if prompt.object_id in prompts.codes:
            entry["code"] = prompts.codes[prompt.object_id]
        if prompt.object_id in prompts.colors:
            entry["color"] = prompts.colors[prompt.object_id]
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            voxel = list(canonical_to_voxel(grid, (prompt.slice, y, x)))
            entry.setdefault("points", []).append({"voxel": voxel, "label": label})
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            corners = ((prompt.slice, y0, x0), (prompt.slice, y1, x1))
            voxels = [number for corner in corners for number in canonical_to_voxel(grid, corner)]
            entry.setdefault("boxes", []).append({"voxel": voxels})
        if prompt.mask_file is not None:
            path, value = prompt.mask_file
            entry["mask"] = {"file": os.path.abspath(path), **({} if value is None else {"value": value})}
    described = {"id", "name", "code", "color"}
    return {"objects": [entry for _, entry in sorted(objects.items()) if entry.keys() - described]}


def _read_objects(root: Field, volume: Volume) -> VolumePrompts:
    """Read a file in this project's format."""
    result = VolumePrompts()
    by_key = {prompt_type.json_key: prompt_type for prompt_type in PROMPT_TYPES.values()}
    ids = set()

    # Many objects may be values of one label map, which is then read once, or all be one mask, which is then kept once.
    def read(path: Path) -> LabelLayers:
        result.files.append(str(path))
        return read_label_layers(path, volume)

    read_once = functools.lru_cache(maxsize=1)(read)
    drawn_once = functools.cache(lambda path, chosen: drawn_slices(read_once(path), chosen))
    for position, item in enumerate(root.fields(("objects",), ("objects",))["objects"].items(), 1):
        fields = item.fields(("id", "name", "code", "color", *by_key))
        object_id = fields["id"].whole(1, MAX_OBJECT_ID) if "id" in fields else position
        if object_id in ids:
            raise UserError(f"{item.file}: {item.path} has the id {object_id} of an earlier object; give it another")
        ids.add(object_id)
        if "name" in fields:
            result.names[object_id] = _object_name(fields["name"])
        if "code" in fields:
            result.codes[object_id] = _parsed(fields["code"], parse_code)
        if "color" in fields:
            result.colors[object_id] = _parsed(fields["color"], parse_color)
        prompts = []
        for key, prompt_type in by_key.items():
            if key in fields:
                prompts += prompt_type.from_json(fields[key], JsonObject(volume, object_id, read_once, drawn_once))
        if not prompts:
            *keys, last = by_key
            raise UserError(f"{item.file}: {item.path} has no prompts; add {', '.join(keys)} or {last}")
        result.prompts.extend(prompts)
    return result


def _object_name(field: Field) -> str:
    name = field.text()
    if not OBJECT_NAME.fullmatch(name):
        raise field.wrong("a name of at most 64 letters, digits and ' .+-_'")
    return name


def _parsed(field: Field, parse: Callable[[str], str]) -> str:
    with naming(f"{field.file}: {field.path}"):
        return parse(field.text())


def _read_markups(root: Field, grid: Grid, node_ids: dict[str, int]) -> VolumePrompts:
    """Read a file of 3D Slicer's markups.

    Args:
        root: root of the file.
        grid: grid of the volume.
        node_ids: object ids of the nodes of all files so far, by name; new nodes are added.

    Raises:
        UserError: a node has an unknown type, coordinate system or unit, or its reader rejects it.
    """
    result = VolumePrompts()
    by_node = {entry.slicer_node: entry.from_slicer for entry in PROMPT_TYPES.values() if entry.slicer_node}
    for node in root.fields(required=("markups",))["markups"].items():
        fields = node.fields(required=("type", "coordinateSystem"))
        name = node_name(node)
        object_id = node_ids.setdefault(name or f"{node.file} {node.path}", len(node_ids) + 1)
        if name:
            result.names[object_id] = name
        check_units(node)
        kind = fields["type"].value
        reader = by_node.get(kind) if isinstance(kind, str) else None
        if reader is None:
            raise fields["type"].wrong(" or ".join(by_node))
        result.prompts.extend(reader(node, grid, object_id))
    return result
