"""Nodes of 3D Slicer's markups (`.mrk.json`, schema 1.0): point lists and ROI boxes.

A point whose label starts with "-" is outside of the object. As in Slicer, points that were never placed are ignored.
"""

from __future__ import annotations

import itertools

import numpy as np

from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, box_prompts, clipped_box, point_prompts, voxel_of_mm
from sam2_3dmed_jax.runtime.json_fields import Field
from sam2_3dmed_jax.volume.geometry import Grid

# Signs that convert a coordinate system to RAS; the numbers are Slicer's enumeration, which older files contain.
_TO_RAS = {"RAS": (1, 1, 1), "LPS": (-1, -1, 1), 0: (1, 1, 1), 1: (-1, -1, 1)}
# Largest fraction of a ROI's edge that may point along other voxel axes: the ROI may be rotated by 6 degrees.
_MAX_ROTATION = 0.1


def node_name(node: Field) -> str:
    """Return the name of a node, cut to 64 characters; an empty text if it has none."""
    return _text(node.fields().get("name"))


def check_units(node: Field) -> None:
    """Check that a node is in millimetres.

    Raises:
        UserError: it has another unit.
    """
    fields = node.fields()
    if "coordinateUnits" in fields and fields["coordinateUnits"].value not in ("mm", ["mm", "mm", "mm"]):
        raise fields["coordinateUnits"].wrong("mm")


def point_list_prompts(node: Field, grid: Grid, object_id: int) -> list[VoxelPrompt]:
    """Return the prompts of a point list.

    Raises:
        UserError: no point is placed, the coordinate system is unknown, or a point is outside the volume.
    """
    prompts = []
    for point in node.fields().get("controlPoints", Field([], node.file)).items():
        point_fields = point.fields()
        if "positionStatus" in point_fields and point_fields["positionStatus"].value != "defined":
            continue
        mm = _position_ras(point, node)
        outside = _text(point_fields.get("label")).startswith("-")
        with naming(f"{point.file}: {point.path}.position"):
            prompts += point_prompts(grid, [(voxel_of_mm(grid, mm), int(not outside), object_id)])
    if not prompts:
        raise UserError(f"{node.file}: {node.path} has no placed points; place some in 3D Slicer, or delete the list")
    return prompts


def roi_prompts(node: Field, grid: Grid, object_id: int) -> list[VoxelPrompt]:
    """Return the box prompts of the part of a ROI that is inside the volume.

    Raises:
        UserError: the ROI is not a box, is inside out, is rotated against the axes of the volume, has an unknown
            coordinate system, or is outside the volume.
    """
    fields = node.fields()
    if "roiType" in fields and fields["roiType"].value not in ("Box", "BoundingBox"):
        raise fields["roiType"].wrong("Box")
    if "insideOut" in fields and fields["insideOut"].value is not False:
        raise fields["insideOut"].wrong("false")
    size = node.fields(required=("size",))["size"].numbers(3, "the lengths of the edges in mm")
    if "center" in fields:
        centre = np.multiply(fields["center"].numbers(3, "x, y, z in mm"), _signs_to_ras(node))
    else:  # Files written by hand may have the centre as their only control point.
        (point,) = fields.get("controlPoints", Field([], node.file)).items()[:1] or [node]
        centre = _position_ras(point, node)
    axes = np.eye(3)  # The columns are the axes of the ROI.
    if "orientation" in fields:
        axes = np.reshape(fields["orientation"].numbers(9, "a matrix row by row"), (3, 3))
    edges = np.array(_signs_to_ras(node))[:, None] * axes * size
    # Extent of each edge in mm along the axes of the volume; an aligned edge has one extent that is not small.
    extents = np.abs(np.linalg.inv(grid.affine)[:3, :3] @ edges) * np.linalg.norm(grid.affine[:3, :3], axis=0)[:, None]
    if not (np.sort(extents, axis=0)[1] <= _MAX_ROTATION * extents.max(0)).all():
        raise UserError(
            f"{node.file}: {node.path}.orientation rotates the ROI against the axes of the volume; rotate it back in "
            "3D Slicer, or give points"
        )
    corners = [
        voxel_of_mm(grid, centre + edges @ np.array(signs)) for signs in itertools.product((-0.5, 0.5), repeat=3)
    ]
    with naming(f"{node.file}: {node.path}"):
        low, high = np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()
        return box_prompts(grid, [(*clipped_box(grid, tuple(low), tuple(high)), object_id)])


def _position_ras(point: Field, node: Field) -> np.ndarray:
    """Return the position of a point, `[3]` in RAS mm."""
    position = point.fields(required=("position",))["position"].numbers(3, "x, y, z in mm")
    return np.multiply(position, _signs_to_ras(node))


def _signs_to_ras(node: Field) -> tuple[int, int, int]:
    """Return the signs that convert the coordinates of a node to RAS."""
    system = node.fields(required=("coordinateSystem",))["coordinateSystem"]
    if not isinstance(system.value, str | int) or isinstance(system.value, bool) or system.value not in _TO_RAS:
        raise system.wrong("LPS or RAS")
    return _TO_RAS[system.value]


def _text(item: Field | None) -> str:
    """Return a text of at most 64 characters; Slicer leaves empty texts out."""
    return item.value[:64] if item and isinstance(item.value, str) else ""
