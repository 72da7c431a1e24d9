"""Object ids, which are the values of label maps, and names of objects."""

from __future__ import annotations

import re

from sam2_3dmed_jax.errors import UserError, plain_number

MAX_OBJECT_ID = 65535  # Label maps are uint16.
OBJECT_NAME = re.compile(r"\w[\w .+-]{0,63}")  # also a part of file names


def check_object_id(number: float) -> int:
    """Return a number as an object id.

    Raises:
        UserError: it is not a whole number from 1 to `MAX_OBJECT_ID`.
    """
    if not 1 <= number <= MAX_OBJECT_ID or number != int(number):
        raise UserError(f"{plain_number(number)} is not an object id; use a whole number from 1 to {MAX_OBJECT_ID}")
    return int(number)


def check_object_name(name: str) -> str:
    """Return the name of an object.

    Raises:
        UserError: it has other characters, or too many.
    """
    if not OBJECT_NAME.fullmatch(name):
        raise UserError(f"'{name[:64]}' is not a name; use at most 64 letters, digits and ' .+-_'")
    return name
