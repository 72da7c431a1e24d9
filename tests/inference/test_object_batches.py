"""Batches of objects and the sizes of their arrays; `test_predictor.py` has their masks."""

from types import SimpleNamespace

import pytest

from sam2_3dmed_jax.inference.object_batches import filled_up, is_repeated, object_batches
from sam2_3dmed_jax.inference.shape_buckets import (
    PROMPTED,
    TOKENS,
    object_rows,
    prompted_room,
    split_into_rows,
    token_room,
)

ON_DEVICES = (1, 4, 8)


def objects(count: int) -> dict[int, int]:
    """Return objects 1, 2, ... with one prompted slice each, in another order."""
    return dict.fromkeys(range(count, 0, -1), 1)


def test_on_a_cpu_each_object_is_a_batch_without_padding():
    assert object_rows() == (1,)
    batches = object_batches(objects(3))
    assert [batch.ids for batch in batches] == [(1,), (2,), (3,)]
    assert {(batch.rows, batch.prompted) for batch in batches} == {(1, PROMPTED[0])}
    assert [batch.note for batch in batches] == ["object 1 of 3", "object 2 of 3", "object 3 of 3"]
    assert object_batches(objects(1))[0].note == ""


@pytest.mark.parametrize(
    ("count", "rows"), [(1, [1]), (2, [1, 1]), (3, [4]), (4, [4]), (5, [8]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])]
)
def test_more_than_half_of_the_rows_of_a_batch_are_objects(count: int, rows: list[int]):
    assert split_into_rows(count, ON_DEVICES) == rows
    batches = object_batches(objects(count), ON_DEVICES)
    assert [batch.rows for batch in batches] == rows
    assert [number for batch in batches for number in batch.ids] == list(range(1, count + 1))
    assert all(batch.rows < 2 * len(batch.ids) or batch.rows == 1 for batch in batches)


def test_an_object_with_many_prompted_slices_is_propagated_alone_with_more_room():
    batches = object_batches({**objects(5), 2: PROMPTED[0] + 1}, ON_DEVICES)
    assert [(batch.ids, batch.rows, batch.prompted) for batch in batches] == [
        ((1, 3, 4, 5), 4, PROMPTED[0]),
        ((2,), 1, PROMPTED[1]),
    ]
    assert [batch.note for batch in batches] == ["objects 1-4 of 5", "object 5 of 5"]


def test_sizes_are_few_up_to_a_limit_and_powers_of_two_beyond_it():
    assert {prompted_room(count) for count in range(PROMPTED[-1] + 1)} == set(PROMPTED)
    assert prompted_room(PROMPTED[-1] + 1) == 2 * PROMPTED[-1]
    assert {token_room(count) for count in range(1, TOKENS + 1)} == {TOKENS} and token_room(TOKENS + 1) == 64


def test_a_batch_is_filled_up_with_rows_that_repeat_its_last_object():
    first, second = SimpleNamespace(), SimpleNamespace()
    rows = filled_up([first, second], 4)
    assert [row is second for row in rows] == [False, True, True, True]
    assert is_repeated(rows) == [False, False, True, True]
    assert filled_up([first, second], 1) == [first, second]
