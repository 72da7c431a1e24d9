"""Images and masks as ITK-SNAP sends and receives them.

Voxels are compressed with gzip, and in ITK's order: the first axis of the image is the fastest in memory. An image has
float32 values in the units of its file, such as HU, and its geometry in JSON, as ITK stores it:

    dimensions [3], spacing [3] in mm, origin [3] in mm, direction [9], components_per_pixel 1, component_type "float32"

`direction` is a matrix in row-major order whose columns are the directions of the axes; it and `origin` are in LPS (to
the left, posterior, superior). A mask is int8, in base64, without geometry.
"""

from __future__ import annotations

import base64
import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.sessions import check_voxels
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS

PIECE_BYTES = 2**20  # decompressed at a time
MAX_EXTENT = 2**31 - 1
MAX_MM = 1e6
MIN_DETERMINANT = 1e-3  # of the direction, which is 1 or -1 if the axes are at right angles
COMPRESSION = 1  # masks are long runs, and higher levels take longer than the transfer


class Geometry(NamedTuple):
    """Shape and place of an image.

    Attributes:
        shape: voxels along the axes i, j, k of the file.
        affine: `[4, 4]`, voxel index (i, j, k, 1) to RAS millimetres.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray


def parse_geometry(metadata: dict[str, Any], max_voxels: int) -> Geometry:
    """Return the geometry in the metadata of an image, or of a drawing on its grid.

    Raises:
        UserError: a field is missing or has another form, or the image has more than `max_voxels`, or several values
            per voxel.
    """
    shape = _numbers(metadata, "dimensions", 3, lambda extent: 1 <= extent <= MAX_EXTENT and extent == int(extent))
    extents = int(shape[0]), int(shape[1]), int(shape[2])
    check_voxels(extents, max_voxels)
    if metadata.get("components_per_pixel") != 1 or metadata.get("component_type") != "float32":
        raise UserError("the image must have one float32 value per voxel, not a colour or a vector")
    spacing = _numbers(metadata, "spacing", 3, lambda value: 0 < value < MAX_MM)
    origin = _numbers(metadata, "origin", 3, lambda value: abs(value) < MAX_MM)
    direction = np.reshape(_numbers(metadata, "direction", 9, lambda value: abs(value) <= 1 + 1e-3), (3, 3))
    if abs(np.linalg.det(direction)) < MIN_DETERMINANT:
        raise UserError("direction: the axes of the image are in one plane")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    return Geometry(extents, LPS_TO_RAS @ affine)


def unpack_voxels(data: bytes | memoryview, shape: tuple[int, int, int]) -> np.ndarray:
    """Return gzipped voxels.

    Args:
        data: gzip of float32.
        shape: of the image, which has been checked.

    Returns:
        `[i, j, k]` float32.

    Raises:
        UserError: the data is damaged, or does not have the size of the image; no more than this size is decompressed.
    """
    voxels = np.empty(shape[::-1], np.dtype("<f4"))
    target = voxels.reshape(-1).view(np.uint8).data
    position = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while piece := stream.read(min(PIECE_BYTES, len(target) - position + 1)):
                if position + len(piece) > len(target):
                    raise UserError(f"the voxels have more than the {len(target)} bytes of the image")
                target[position : position + len(piece)] = piece
                position += len(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError("the voxels are damaged: they cannot be decompressed; send them again") from error
    if position != len(target):
        raise UserError(f"the voxels have {position} bytes, expected {len(target)}")
    return voxels.T


def pack_mask(mask: np.ndarray) -> str:
    """Return a mask, bool `[i, j, k]`, as ITK-SNAP reads it: base64 of gzip of int8, 1 inside."""
    return base64.b64encode(gzip.compress(mask.astype(np.int8).tobytes(order="F"), COMPRESSION)).decode("ascii")


def _numbers(metadata: dict[str, Any], name: str, count: int, is_allowed: Callable[[float], bool]) -> list[float]:
    """Return the numbers of a field.

    Raises:
        UserError: there are others, or another number of them.
    """
    values = metadata.get(name)
    if (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and is_allowed(value) for value in values)
    ):
        return values
    raise UserError(f"{name}: the metadata does not have {count} numbers in their range")
