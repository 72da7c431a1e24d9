"""Prompts from files: our own JSON, and 3D Slicer's markups.

Our own form, every key but `objects` optional; `voxel` are 0-based indices of the file as stored, `mm` are RAS,
and files are named relative to the JSON file:

    {"objects": [{
        "id": 1, "name": "spleen",
        "points": [{"voxel": [60, 45, 30], "label": 1}, {"mm": [-80.5, 12, 140], "label": 0}],
        "boxes": [{"voxel": [50, 40, 28, 70, 52, 33]}, {"mm": [-95, 0, 130, -60, 30, 150]}],
        "mask": "drawn.nii.gz",
        "scribble": {"file": "strokes.nii.gz", "inside": 1, "outside": 2}
    }]}

A mask or a scribble is a label map on the volume's grid: all its values but 0, or `{"file": ..., "value": 4}` of a
mask, and `inside` and `outside` of a scribble. Objects without an id are numbered by their place, from 1.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.prompts.scribbles import scribble_prompts
from sam2_3dmed_jax.prompts.slicer_markups import markup_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import (
    MAX_OBJECT_ID,
    Triple,
    VoxelPrompt,
    box_prompts,
    mask_prompts,
    point_prompts,
    voxel_of_mm,
)
from sam2_3dmed_jax.runtime.json_fields import Field, read_json
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_labels

_OBJECT = ("id", "name", "points", "boxes", "mask", "scribble")


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and the names of objects that have one."""

    prompts: list[VoxelPrompt] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)


def read_prompt_files(paths: Sequence[str | os.PathLike[str]], volume: Volume) -> PromptSet:
    """Prompts of several files; markups nodes are numbered on from one file to the next.

    Raises:
        UserError: what does not fit, by file and field; or an object has two names, or a name two objects.
    """
    found = PromptSet()
    nodes: dict[str, int] = {}
    for path in paths:
        root = read_json(path)
        if isinstance(root.value, dict) and "markups" in root.value:
            prompts, names = markup_prompts(root, volume.grid, nodes)
        else:
            prompts, names = _objects(root, volume)
        for object_id, name in names.items():
            if found.names.setdefault(object_id, name) != name:
                other = found.names[object_id]
                raise UserError(f"{path}: object {object_id} is '{name}', but '{other}' before; give it another id")
        found.prompts.extend(prompts)
    if len(set(found.names.values())) < len(found.names):
        raise UserError(f"{', '.join(map(str, paths))}: two objects have one name; give each its own")
    return found


def _objects(root: Field, volume: Volume) -> tuple[list[VoxelPrompt], dict[int, str]]:
    prompts: list[VoxelPrompt] = []
    names: dict[int, str] = {}
    seen = set()
    # Many objects of one label map are one reading; a second file takes its place.
    labels_of = functools.lru_cache(maxsize=1)(lambda path: read_labels(path, volume))
    for place, item in enumerate(root.fields(("objects",), ("objects",))["objects"].items(), 1):
        fields = item.fields(_OBJECT)
        object_id = fields["id"].whole(1, MAX_OBJECT_ID) if "id" in fields else place
        if object_id in seen:
            raise UserError(f"{item.file}: {item.path} has the id {object_id} of an earlier object; give it another")
        seen.add(object_id)
        if "name" in fields:
            names[object_id] = fields["name"].text()
            if not re.fullmatch(r"\w[\w .+-]{0,63}", names[object_id]):
                raise fields["name"].wrong("a name of at most 64 letters, digits and ' .+-_'")
        before = len(prompts)
        for point in fields["points"].items() if "points" in fields else ():
            prompts += _point(point, volume.grid, object_id)
        for box in fields["boxes"].items() if "boxes" in fields else ():
            first, second = _corners(box, volume.grid)
            with naming(f"{box.file}: {box.path}"):
                prompts += box_prompts(volume.grid, [(first, second, object_id)])
        if "mask" in fields:
            prompts += _mask(fields["mask"], labels_of, object_id)
        if "scribble" in fields:
            prompts += _scribble(fields["scribble"], labels_of, object_id, volume.spacing)
        if len(prompts) == before:
            raise UserError(f"{item.file}: {item.path} has no prompts; add points, boxes, a mask or a scribble")
    return prompts, names


def _point(point: Field, grid: Grid, object_id: int) -> list[VoxelPrompt]:
    fields = point.fields(("voxel", "mm", "label"))
    label = fields["label"].whole(0, 1) if "label" in fields else 1
    (at,) = _places(point, grid, 1)
    with naming(f"{point.file}: {point.path}"):
        return point_prompts(grid, [(at, label, object_id)])


def _corners(box: Field, grid: Grid) -> tuple[Triple, Triple]:
    box.fields(("voxel", "mm"))
    first, second = _places(box, grid, 2)
    return first, second


def _places(item: Field, grid: Grid, count: int) -> list[Triple]:
    """The `count` voxels under `voxel` or `mm`, three numbers each."""
    fields = item.fields()
    if ("voxel" in fields) == ("mm" in fields):
        raise item.wrong("either 'voxel' or 'mm'")
    given = fields.get("voxel") or fields["mm"]
    numbers = given.numbers(3 * count, "x, y, z" if count == 1 else "two opposite corners")
    triples = [(x, y, z) for x, y, z in np.reshape(numbers, (-1, 3)).tolist()]
    return triples if "voxel" in fields else [voxel_of_mm(grid, mm) for mm in triples]


def _mask(item: Field, labels_of: Callable[[Path], np.ndarray], object_id: int) -> list[VoxelPrompt]:
    path, fields = _file(item, ("file", "value"))
    labels, source = labels_of(path), f"{item.file}: {item.path}"
    inside = labels == fields["value"].whole(1, MAX_OBJECT_ID) if "value" in fields else labels != 0
    return mask_prompts(np.where(inside, object_id, 0), source)


def _scribble(
    item: Field, labels_of: Callable[[Path], np.ndarray], object_id: int, spacing: Triple
) -> list[VoxelPrompt]:
    path, fields = _file(item, ("file", "inside", "outside"))
    labels, source = labels_of(path), f"{item.file}: {item.path}"
    outside = fields["outside"].whole(1, MAX_OBJECT_ID) if "outside" in fields else 0
    painted = labels == fields["inside"].whole(1, MAX_OBJECT_ID) if "inside" in fields else labels != 0
    strokes = np.where(painted, object_id, 0)
    strokes[(labels == outside) & (outside > 0)] = -1
    return scribble_prompts(strokes, spacing, source, outside=-1)


def _file(item: Field, known: tuple[str, ...]) -> tuple[Path, dict[str, Field]]:
    """The file that a mask or scribble names, relative to the JSON file, and the fields beside it."""
    fields = {"file": item} if isinstance(item.value, str) else item.fields(known, ("file",))
    return Path(item.file).parent / fields["file"].text(), fields
