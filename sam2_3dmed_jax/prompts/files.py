"""Prompts from JSON files: the format of this project, and markups of 3D Slicer.

In this project's format, every key but `objects` is optional. `voxel` are 0-based voxel indices of the image file as
stored, `mm` are RAS millimetres, and file names are relative to the JSON file:

    {"objects": [{
        "id": 1, "name": "spleen",
        "points": [{"voxel": [60, 45, 30], "label": 1}, {"mm": [-80.5, 12, 140], "label": 0}],
        "boxes": [{"voxel": [50, 40, 28, 70, 52, 33]}, {"mm": [-95, 0, 130, -60, 30, 150]}],
        "mask": "drawn.nii.gz",
        "scribble": {"file": "strokes.nii.gz", "inside": 1, "outside": 2}
    }]}

A mask or a scribble is a label map on the grid of the volume. All values except 0 are inside; `{"file": ..., "value":
4}` selects one value of a mask, and `inside` and `outside` select the values of a scribble. Objects without an id are
numbered by their position in the list, from 1.

In markups, a node is an object, and nodes with the same name are one object: a point list and a ROI may describe it
together.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence

from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.prompts.object_ids import MAX_OBJECT_ID
from sam2_3dmed_jax.prompts.prompt_types import PROMPT_TYPES, JsonObject
from sam2_3dmed_jax.prompts.slicer_markups import check_units, node_name
from sam2_3dmed_jax.prompts.voxel_prompts import VolumePrompts
from sam2_3dmed_jax.runtime.json_fields import Field, read_json
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_label_layers


def read_prompt_files(paths: Sequence[str | os.PathLike[str]], volume: Volume) -> VolumePrompts:
    """Read the prompts of several files; nodes of markups are numbered across the files.

    Raises:
        UserError: a file does not fit, by file and field; an object has two names; or two objects share a name.
    """
    merged = VolumePrompts()
    node_ids: dict[str, int] = {}
    for path in paths:
        root = read_json(path)
        is_markups = isinstance(root.value, dict) and "markups" in root.value
        of_file = _read_markups(root, volume.grid, node_ids) if is_markups else _read_objects(root, volume)
        for object_id, name in of_file.names.items():
            if merged.names.setdefault(object_id, name) != name:
                other = merged.names[object_id]
                raise UserError(f"{path}: object {object_id} is '{name}', but '{other}' before; give it another id")
        merged.prompts.extend(of_file.prompts)
    if len(set(merged.names.values())) < len(merged.names):
        raise UserError(f"{listed(paths)}: two objects have the same name; give each its own name")
    return merged


def _read_objects(root: Field, volume: Volume) -> VolumePrompts:
    """Read a file in this project's format."""
    result = VolumePrompts()
    by_key = {prompt_type.json_key: prompt_type for prompt_type in PROMPT_TYPES.values()}
    ids = set()
    # Many objects may be values of one label map, which is then read once.
    read_once = functools.lru_cache(maxsize=1)(lambda path: read_label_layers(path, volume))
    for position, item in enumerate(root.fields(("objects",), ("objects",))["objects"].items(), 1):
        fields = item.fields(("id", "name", *by_key))
        object_id = fields["id"].whole(1, MAX_OBJECT_ID) if "id" in fields else position
        if object_id in ids:
            raise UserError(f"{item.file}: {item.path} has the id {object_id} of an earlier object; give it another")
        ids.add(object_id)
        if "name" in fields:
            result.names[object_id] = _object_name(fields["name"])
        prompts = []
        for key, prompt_type in by_key.items():
            if key in fields:
                prompts += prompt_type.from_json(fields[key], JsonObject(volume, object_id, read_once))
        if not prompts:
            *keys, last = by_key
            raise UserError(f"{item.file}: {item.path} has no prompts; add {', '.join(keys)} or {last}")
        result.prompts.extend(prompts)
    return result


def _object_name(field: Field) -> str:
    name = field.text()
    if not re.fullmatch(r"\w[\w .+-]{0,63}", name):
        raise field.wrong("a name of at most 64 letters, digits and ' .+-_'")
    return name


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
