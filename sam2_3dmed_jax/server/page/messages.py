"""Messages of the page's WebSocket: JSON from the page, and JSON or slices of masks to it.

Voxels have the indices of the page's grid (`display_grid.py`). A part of a slice is its bounding box and one bit per
voxel, row by row, the first voxel in the highest bit, so that a slice of an organ takes about a kilobyte.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.json_fields import Field
from sam2_3dmed_jax.server.page.display_grid import Triple

MAX_OBJECTS = 255  # the viewer's label map has one byte per voxel
MAX_TEXT = 4 << 20  # characters of a message: a drawn slice of 4096 x 4096 voxels has 2.8 million
_HEADER = struct.Struct("<BxHIHHHHH")  # kind, object, revision, z, x, y, width, height of the bounding box
SLICE = 1


@dataclass(frozen=True)
class Open:
    """Open an image: a path under the root, or an upload."""

    image: str = ""
    upload: str = ""


@dataclass(frozen=True)
class Ready:
    """The page shows the image: its state and masks may follow."""


@dataclass(frozen=True)
class Click:
    """A click inside or outside of an object."""

    object: int
    voxel: Triple
    inside: bool


@dataclass(frozen=True)
class Box:
    """A box of voxels, both corners included."""

    object: int
    first: Triple
    second: Triple


@dataclass(frozen=True, eq=False)
class Scribble:
    """Strokes inside or outside of an object on one slice, bool `[y, x]`; at least one of the two."""

    object: int
    z: int
    inside: np.ndarray | None
    outside: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Draw:
    """The whole mask of an object on one slice, bool `[y, x]`, after brush and eraser."""

    object: int
    z: int
    mask: np.ndarray


@dataclass(frozen=True)
class Undo:
    """Take back the last change."""


@dataclass(frozen=True)
class Redo:
    """Bring back the change that was taken back last."""


@dataclass(frozen=True)
class Clear:
    """Remove the prompts of one object, or of all."""

    object: int | None


@dataclass(frozen=True)
class Name:
    """Name an object, which may be new."""

    object: int
    name: str
    color: str


@dataclass(frozen=True)
class Look:
    """The page shows another slice, which is encoded first."""

    z: int


Message = Open | Ready | Click | Box | Scribble | Draw | Undo | Redo | Clear | Name | Look


def parse_message(text: str, shape: tuple[int, int, int] | None) -> Message:
    """Read a message of the page.

    Args:
        text: JSON, an object with `type` and the fields of the message.
        shape: voxels along (x, y, z) of the page; None while no image is open.

    Raises:
        UserError: the message has another form.
    """
    if len(text) > MAX_TEXT:
        raise UserError(f"message: it has {len(text)} characters; send at most {MAX_TEXT}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"message: it is not JSON ({str(error)[:80]})") from None
    fields = Field(value, "message").fields(required=("type",))
    kind = fields.pop("type")
    parse = _PARSERS.get(kind.value) if isinstance(kind.value, str) else None
    if parse is None:
        raise kind.wrong(f"one of {', '.join(_PARSERS)}")
    if kind.value == "open":
        return Open(_optional_text(fields, "image"), _optional_text(fields, "upload"))
    if shape is None:
        raise UserError("message: no image is open; open one first")
    try:
        return parse(fields, shape)
    except KeyError as missing:
        raise UserError(f"message: a {kind.value} has no {missing}; add it") from None


def slice_update(object_id: int, revision: int, z: int, mask: np.ndarray) -> bytes:
    """Return the message with one slice of an object's mask.

    Args:
        object_id: of the object.
        revision: number of the change of prompts that the mask belongs to.
        z: of the slice.
        mask: bool `[y, x]`; an empty one has an empty box.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return _HEADER.pack(SLICE, object_id, revision, z, 0, 0, 0, 0)
    y, x, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    header = _HEADER.pack(SLICE, object_id, revision, z, x, y, right - x, bottom - y)
    return header + np.packbits(mask[y:bottom, x:right]).tobytes()


def _click(fields: dict[str, Field], shape: tuple[int, int, int]) -> Click:
    inside = fields["inside"]
    if not isinstance(inside.value, bool):
        raise inside.wrong("true or false")
    return Click(_object(fields), _voxel(fields["voxel"], shape), inside.value)


def _box(fields: dict[str, Field], shape: tuple[int, int, int]) -> Box:
    return Box(_object(fields), _voxel(fields["first"], shape), _voxel(fields["second"], shape))


def _scribble(fields: dict[str, Field], shape: tuple[int, int, int]) -> Scribble:
    inside = _bits(fields["inside"], shape) if "inside" in fields else None
    outside = _bits(fields["outside"], shape) if "outside" in fields else None
    return Scribble(_object(fields), fields["z"].whole(0, shape[2] - 1), inside, outside)


def _draw(fields: dict[str, Field], shape: tuple[int, int, int]) -> Draw:
    return Draw(_object(fields), fields["z"].whole(0, shape[2] - 1), _bits(fields["mask"], shape))


def _clear(fields: dict[str, Field], shape: tuple[int, int, int]) -> Clear:
    return Clear(_object(fields) if "object" in fields else None)


def _name(fields: dict[str, Field], shape: tuple[int, int, int]) -> Name:
    return Name(_object(fields), fields["name"].text(), _optional_text(fields, "color"))


def _look(fields: dict[str, Field], shape: tuple[int, int, int]) -> Look:
    return Look(fields["z"].whole(0, shape[2] - 1))


_PARSERS: dict[str, Callable[[dict[str, Field], tuple[int, int, int]], Message]] = {
    "open": lambda fields, shape: Open(),
    "ready": lambda fields, shape: Ready(),
    "click": _click,
    "box": _box,
    "scribble": _scribble,
    "draw": _draw,
    "undo": lambda fields, shape: Undo(),
    "redo": lambda fields, shape: Redo(),
    "clear": _clear,
    "name": _name,
    "look": _look,
}


def _object(fields: dict[str, Field]) -> int:
    return fields["object"].whole(1, MAX_OBJECTS)


def _voxel(field: Field, shape: tuple[int, int, int]) -> Triple:
    x, y, z = field.numbers(3, "the voxel x, y, z")
    if not all(-0.5 <= value <= length - 0.5 for value, length in zip((x, y, z), shape, strict=True)):
        raise field.wrong(f"a voxel of an image of {' x '.join(map(str, shape))}")
    return x, y, z


def _bits(field: Field, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a slice, bool `[y, x]`, from `{"box": [x, y, width, height], "bits": base64}`."""
    parts = field.fields(required=("box", "bits"))
    x, y, width, height = (int(number) for number in parts["box"].numbers(4, "x, y, width, height"))
    if not (0 <= x <= x + width <= shape[0] and 0 <= y <= y + height <= shape[1]):
        raise parts["box"].wrong(f"a box in a slice of {shape[0]} x {shape[1]} voxels")
    try:
        packed = np.frombuffer(base64.b64decode(parts["bits"].value or "", validate=True), np.uint8)
    except (TypeError, ValueError):
        raise parts["bits"].wrong("base64") from None
    if packed.size != (width * height + 7) // 8:
        raise parts["bits"].wrong(f"{width * height} bits in base64")
    mask = np.zeros((shape[1], shape[0]), bool)
    mask[y : y + height, x : x + width] = np.unpackbits(packed, count=width * height).reshape(height, width)
    return mask


def _optional_text(fields: dict[str, Field], name: str) -> str:
    return fields[name].text() if name in fields and fields[name].value != "" else ""
