"""Slices of a volume as the widget shows them: radiological view, 8 bits per pixel, compressed.

The front end gets the slices that it shows, one at a time, and not the whole volume: a CT of 512 x 512 x 160 voxels has
84 MB, and a slice about 100 kB.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam2_3dmed_jax.pictures.planes import PLANES
from sam2_3dmed_jax.runtime.json_fields import Field
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import Window, apply_window

FASTEST = 1  # level of zlib; the highest level saves a tenth of the bytes and takes five times as long


@dataclass(frozen=True)
class PictureRequest:
    """A slice that the front end shows.

    Attributes:
        plane: index in `PLANES`.
        index: of the slice, as of the voxels of the page: from left to right, posterior to anterior, or inferior to
            superior.
        window: index in the list of windows of the volume.
    """

    plane: int
    index: int
    window: int


def parse_picture_request(content: dict[str, Any], volume: Volume, windows: int) -> PictureRequest:
    """Read the message that asks for a slice.

    Args:
        content: the fields `plane`, `index` and `window`, and `type`.
        volume: the image.
        windows: number of windows of the image.

    Raises:
        UserError: a field is missing, or the slice or the window does not exist.
    """
    fields = Field(content, "message").fields(required=("type", "plane", "index", "window"))
    plane = fields["plane"].whole(0, len(PLANES) - 1)
    index = fields["index"].whole(0, volume.array.shape[PLANES[plane].axis] - 1)
    return PictureRequest(plane, index, fields["window"].whole(0, windows - 1))


def slice_picture(volume: Volume, request: PictureRequest, window: Window) -> bytes:
    """Return a slice in radiological view: the patient's right, or the front in sagittal slices, is on the left.

    Args:
        volume: the image.
        request: the slice; its window is not used.
        window: (level, width) in the values of the volume.

    Returns:
        uint8 `[rows, columns]` in C order, 0 black, compressed with zlib. Rows and columns are the two other axes of
        the volume; the head is up in coronal and sagittal slices.
    """
    plane = PLANES[request.plane]
    # Canonical rows and columns run against the axes of the page.
    index = request.index if plane.axis == 0 else volume.array.shape[plane.axis] - 1 - request.index
    values = volume.array.take(index, plane.axis)
    rows = values[::-1] if plane.upwards else values
    grey = np.rint(apply_window(rows, *window) * 255).astype(np.uint8)
    return zlib.compress(grey.tobytes(), FASTEST)
