"""Sizes that arrays of a session are padded to, so that few compiled programs serve all prompts.

Padding is masked exactly: padding tokens and empty memory slots get no weight, and a block of keys without a valid key
is skipped, so that empty slots cost little. The sizes are few because each combination is a compilation.
"""

from __future__ import annotations

import jax

from sam2_3dmed_jax.inference.padding import next_power_of_two

PROMPTED = (4, 32)  # prompted slices of an object that the memory bank has room for; beyond that, powers of two
# Tokens of a prompt: up to 32 points, the corners of a box, and a last token; beyond that, powers of two. A token costs
# the mask decoder almost nothing compared with the cells of the slice.
TOKENS = 40
POSITIONS = 512  # slices of a volume whose SRPP embeddings see each other; beyond that, powers of two


def prompted_room(slices: int) -> int:
    """Return the room of a memory bank for an object with this number of prompted slices."""
    return _size(slices, PROMPTED)


def corrected_room(slices: int) -> int:
    """Return the room of the memory bank that a correction of an object with so many prompted slices sees.

    The smaller rooms would be a program each, and save nothing: empty slots are skipped.
    """
    return max(prompted_room(slices), PROMPTED[-1])


def token_room(tokens: int) -> int:
    """Return the number of tokens that a prompt is padded to."""
    return _size(tokens, (TOKENS,))


def position_room(slices: int) -> int:
    """Return the number of slices that the SRPP embeddings of a volume are padded to."""
    return _size(slices, (POSITIONS,))


def object_rows() -> tuple[int, ...]:
    """Return the numbers of objects that are propagated at once, smallest first.

    On a CPU, eight objects take eight times as long as one, so that each is propagated alone: no row is padding.
    """
    return (1,) if jax.default_backend() == "cpu" else (1, 4, 8)


def split_into_rows(objects: int, rows: tuple[int, ...]) -> list[int]:
    """Return the sizes of the batches, from `rows`, that a number of objects is propagated in.

    A batch is chosen only if more than half of its rows are objects.
    """
    sizes = []
    while objects > 0:
        size = next(size for size in reversed(rows) if objects * 2 > size or size == rows[0])
        sizes.append(size)
        objects -= size
    return sizes


def _size(number: int, sizes: tuple[int, ...]) -> int:
    return next((size for size in sizes if number <= size), next_power_of_two(number))
