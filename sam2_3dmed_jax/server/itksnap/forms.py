"""Forms with several parts (`multipart/form-data`, RFC 7578), as ITK-SNAP sends images.

The form is small in everything but its voxels, and is parsed in memory. Starlette's parser needs another package and
writes voxels to the disk.
"""

from __future__ import annotations

from email.message import Message
from email.parser import BytesHeaderParser

from sam2_3dmed_jax.errors import UserError

MAX_PARTS = 8
MAX_HEADER_BYTES = 4096  # of one part


def parse_form(content_type: str, body: bytes) -> dict[str, memoryview]:
    """Return the content of each part by its name.

    Args:
        content_type: header of the request, which contains the boundary between parts.
        body: of the request; the returned contents are views of it.

    Raises:
        UserError: it is not a form, ends too early, or has too many parts.
    """
    delimiter = b"\r\n--" + _boundary(content_type)
    if not body.startswith(delimiter[2:]):
        raise _damaged("it does not start with its boundary")
    parts: dict[str, memoryview] = {}
    position = len(delimiter) - 2
    while body[position : position + 2] == b"\r\n":
        if len(parts) == MAX_PARTS:
            raise _damaged(f"it has more than {MAX_PARTS} parts")
        content = body.find(b"\r\n\r\n", position, position + MAX_HEADER_BYTES) + 4
        end = body.find(delimiter, content)
        if content < 4 or end < 0:
            raise _damaged("a part has no end")
        parts[_name(body[position + 2 : content])] = memoryview(body)[content:end]
        position = end + len(delimiter)
    if body[position : position + 2] != b"--":
        raise _damaged("it ends too early")
    return parts


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary or not boundary.isascii():
        raise UserError("the request is not a form (multipart/form-data) with a boundary")
    return boundary.encode()


def _name(header: bytes) -> str:
    name = BytesHeaderParser().parsebytes(header).get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise _damaged("a part has no name")
    return name


def _damaged(what: str) -> UserError:
    return UserError(f"the form is damaged: {what}; send it again")
