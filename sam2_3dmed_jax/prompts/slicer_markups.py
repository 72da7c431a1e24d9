"""Prompts from 3D Slicer's markups (`.mrk.json`, schema 1.0): point lists and ROI boxes.

A node is an object. Nodes that share a name are one object, so that a point list and a ROI can speak of the same.
A point whose label starts with "-" lies outside. Points that were never placed are left out, as Slicer does.
"""

from __future__ import annotations

import itertools

import numpy as np

from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, box_prompts, point_prompts, voxel_of_mm
from sam2_3dmed_jax.runtime.json_fields import Field
from sam2_3dmed_jax.volume.geometry import Grid

# To RAS; the numbers are Slicer's own enumeration, which older files hold.
_TO_RAS = {"RAS": (1, 1, 1), "LPS": (-1, -1, 1), 0: (1, 1, 1), 1: (-1, -1, 1)}
_TURNED = 0.1  # share of a ROI's edge that may leave its voxel axis: 6 degrees


def markup_prompts(root: Field, grid: Grid, ids: dict[str, int]) -> tuple[list[VoxelPrompt], dict[int, str]]:
    """Prompts and names of objects.

    Args:
        root: of a file with the key `markups`.
        grid: of the volume.
        ids: object ids of the nodes met so far, by name; grows.

    Raises:
        UserError: a node that is no point list and no ROI box, a coordinate system that is not said, a ROI turned
            against the volume's axes, a list without points, or anything outside the volume.
    """
    prompts: list[VoxelPrompt] = []
    names = {}
    for node in root.fields(required=("markups",))["markups"].items():
        fields = node.fields(required=("type", "coordinateSystem"))
        name = _text(fields.get("name"))
        object_id = ids.setdefault(name or f"{node.file} {node.path}", len(ids) + 1)
        if name:
            names[object_id] = name
        if "coordinateUnits" in fields and fields["coordinateUnits"].value not in ("mm", ["mm", "mm", "mm"]):
            raise fields["coordinateUnits"].wrong("mm")
        if fields["type"].value == "Fiducial":
            prompts += _points(node, fields, grid, object_id)
        elif fields["type"].value == "ROI":
            prompts += _box(node, fields, grid, object_id)
        else:
            raise fields["type"].wrong("Fiducial (a point list) or ROI")
    return prompts, names


def _points(node: Field, fields: dict[str, Field], grid: Grid, object_id: int) -> list[VoxelPrompt]:
    found = []
    for point in fields.get("controlPoints", Field([], node.file)).items():
        own = point.fields()
        if "positionStatus" in own and own["positionStatus"].value != "defined":
            continue
        mm = _position(point, fields)
        outside = _text(own.get("label")).startswith("-")
        with naming(f"{point.file}: {point.path}.position"):
            found += point_prompts(grid, [(voxel_of_mm(grid, mm), int(not outside), object_id)])
    if not found:
        raise UserError(f"{node.file}: {node.path} has no placed points; place some in 3D Slicer, or delete the list")
    return found


def _box(node: Field, fields: dict[str, Field], grid: Grid, object_id: int) -> list[VoxelPrompt]:
    if "roiType" in fields and fields["roiType"].value not in ("Box", "BoundingBox"):
        raise fields["roiType"].wrong("Box")
    if "insideOut" in fields and fields["insideOut"].value is not False:
        raise fields["insideOut"].wrong("false")
    size = node.fields(required=("size",))["size"].numbers(3, "the lengths of the edges in mm")
    if "center" in fields:
        centre = np.multiply(fields["center"].numbers(3, "x, y, z in mm"), _system(fields))
    else:  # as in files written by hand
        (point,) = fields.get("controlPoints", Field([], node.file)).items()[:1] or [node]
        centre = _position(point, fields)
    axes = np.eye(3)  # columns are the ROI's axes
    if "orientation" in fields:
        axes = np.reshape(fields["orientation"].numbers(9, "a matrix row by row"), (3, 3))
    edges = np.array(_system(fields))[:, None] * axes * size
    # In millimetres along the volume's axes, which a ROI that fits them follows one by one.
    along = np.abs(np.linalg.inv(grid.affine)[:3, :3] @ edges) * np.linalg.norm(grid.affine[:3, :3], axis=0)[:, None]
    if not (np.sort(along, axis=0)[1] <= _TURNED * along.max(0)).all():
        raise UserError(
            f"{node.file}: {node.path}.orientation turns the ROI against the volume's axes; turn it back in 3D Slicer, "
            "or give points"
        )
    corners = [
        voxel_of_mm(grid, centre + edges @ np.array(signs)) for signs in itertools.product((-0.5, 0.5), repeat=3)
    ]
    with naming(f"{node.file}: {node.path}"):
        low, high = np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()
        return box_prompts(grid, [(tuple(low), tuple(high), object_id)])


def _position(point: Field, fields: dict[str, Field]) -> np.ndarray:
    """`[3]` in RAS mm."""
    position = point.fields(required=("position",))["position"].numbers(3, "x, y, z in mm")
    return np.multiply(position, _system(fields))


def _text(item: Field | None) -> str:
    """What Slicer leaves out, or leaves empty, is an empty text."""
    return item.value[:64] if item and isinstance(item.value, str) else ""


def _system(fields: dict[str, Field]) -> tuple[int, int, int]:
    system = fields["coordinateSystem"]
    if not isinstance(system.value, str | int) or isinstance(system.value, bool) or system.value not in _TO_RAS:
        raise system.wrong("LPS or RAS")
    return _TO_RAS[system.value]
