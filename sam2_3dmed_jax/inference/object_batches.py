"""Batches of the objects of a session, so that memory does not grow with the number of objects.

Objects do not see each other. Batches have equal sizes, which rows without an object and prompt fill up, so that all of
them run the same compiled programs, and an object has the same mask in every session with the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sam2_3dmed_jax.inference.object_state import ObjectState
from sam2_3dmed_jax.inference.padding import next_power_of_two

# Objects that are propagated together, at most. At 1024 px in float32, a memory of one takes 1 MiB per slice, of which
# the model sees 7 or more; its features and scores take several times as much while a slice is segmented.
OBJECTS = 8


@dataclass(frozen=True)
class ObjectBatches:
    """Objects that are propagated together, and the sizes that all batches share.

    Attributes:
        ids: object ids of each batch, in order.
        rows: objects of a batch; a smaller batch is filled up.
        prompted: prompted slices per object that the memory bank has room for, at least; a power of two.
        prompts: slices that are segmented from new prompts in one batch, at least; a power of two.
    """

    ids: tuple[tuple[int, ...], ...]
    rows: int
    prompted: int = 1
    prompts: int = 1

    def note(self, ids: tuple[int, ...]) -> str:
        """Return which objects a batch has, for progress; "" for the only batch."""
        if len(self.ids) == 1:
            return ""
        before = sum(len(batch) for batch in self.ids[: self.ids.index(ids)])
        return f"objects {before + 1}-{before + len(ids)} of {sum(map(len, self.ids))}"


def object_batches(objects: Mapping[int, ObjectState]) -> ObjectBatches:
    """Return the batches of the objects of a session, which are given by id; up to `OBJECTS` objects are one batch."""
    ids = sorted(objects)
    count = -(-len(ids) // OBJECTS)
    if count <= 1:
        return ObjectBatches((tuple(ids),), len(ids))
    rows = -(-len(ids) // count)
    batches = tuple(tuple(ids[start : start + rows]) for start in range(0, len(ids), rows))
    prompted = max(len(state.prompts) for state in objects.values())
    prompts = max(sum(len(objects[number].pending) for number in batch) for batch in batches)
    return ObjectBatches(batches, rows, next_power_of_two(prompted), next_power_of_two(prompts))


def filled_up(batch: list[ObjectState], rows: int) -> list[ObjectState]:
    """Return a batch of at least `rows` rows; those that repeat the last object stay inactive, see `is_repeated`."""
    return [*batch, *[batch[-1]] * (rows - len(batch))]


def is_repeated(objects: list[ObjectState]) -> list[bool]:
    """Return for each row of a batch whether it only fills the batch up."""
    return [row > 0 and state is objects[row - 1] for row, state in enumerate(objects)]
