"""Batches of the objects of a session, so that memory does not grow with the number of objects.

Objects do not see each other. The numbers of rows and the room for prompted slices are those of `shape_buckets.py`;
rows without an object fill a batch up, so that all sessions run the same few compiled programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sam2_3dmed_jax.inference.object_state import ObjectState
from sam2_3dmed_jax.inference.shape_buckets import PROMPTED, object_rows, prompted_room, split_into_rows


@dataclass(frozen=True)
class ObjectBatch:
    """Objects that are propagated together.

    Attributes:
        ids: object ids, in order.
        rows: of the compiled program; at least the number of objects.
        prompted: room of the memory bank for prompted slices of each object.
        note: which of the session's objects these are, for progress; "" if they are all.
    """

    ids: tuple[int, ...]
    rows: int = 1
    prompted: int = 1
    note: str = ""


def object_batches(prompted: Mapping[int, int], sizes: tuple[int, ...] | None = None) -> list[ObjectBatch]:
    """Return the batches of objects.

    Objects with many prompted slices are propagated one by one, since the room for them is for all rows of a batch.

    Args:
        prompted: the number of prompted slices of each object, by id.
        sizes: allowed numbers of rows, or None for those of this platform.
    """
    sizes = sizes or object_rows()
    rooms = {object_id: prompted_room(slices) for object_id, slices in sorted(prompted.items())}
    few = [number for number, room in rooms.items() if room == PROMPTED[0]]
    many = [number for number, room in rooms.items() if room > PROMPTED[0]]
    groups, start = [], 0
    for rows in split_into_rows(len(few), sizes):
        groups.append((few[start : start + rows], rows))
        start += rows
    groups += [([number], sizes[0]) for number in many]
    batches: list[ObjectBatch] = []
    for ids, rows in groups:
        done = sum(len(batch.ids) for batch in batches)
        batches.append(ObjectBatch(tuple(ids), rows, rooms[ids[0]], _note(done, len(ids), len(rooms))))
    return batches


def _note(before: int, count: int, total: int) -> str:
    if count == total:
        return ""
    return f"object {before + 1} of {total}" if count == 1 else f"objects {before + 1}-{before + count} of {total}"


def filled_up(batch: list[ObjectState], rows: int) -> list[ObjectState]:
    """Return a batch of at least `rows` rows; those that repeat the last object stay inactive, see `is_repeated`."""
    return [*batch, *[batch[-1]] * (rows - len(batch))]


def is_repeated(objects: list[ObjectState]) -> list[bool]:
    """Return for each row of a batch whether it only fills the batch up."""
    return [row > 0 and state is objects[row - 1] for row, state in enumerate(objects)]
