"""Range of object ids, which are the values of label maps."""

from __future__ import annotations

from sam2_3dmed_jax.errors import UserError, plain_number

MAX_OBJECT_ID = 65535  # Label maps are uint16.


def check_object_id(number: float) -> int:
    """Return a number as an object id.

    Raises:
        UserError: it is not a whole number from 1 to `MAX_OBJECT_ID`.
    """
    if not 1 <= number <= MAX_OBJECT_ID or number != int(number):
        raise UserError(f"{plain_number(number)} is not an object id; use a whole number from 1 to {MAX_OBJECT_ID}")
    return int(number)
