"""Sizes of batches of objects; `test_predictor.py` has their masks."""

from types import SimpleNamespace

import pytest

from sam2_3dmed_jax.inference.object_batches import OBJECTS, filled_up, is_repeated, object_batches


def objects(count: int, **more: object) -> dict:
    """Return objects 1, 2, ... with one new prompt each; objects by id may have others."""
    return {
        number: more.get(f"object_{number}", SimpleNamespace(prompts={3: None}, pending=[3]))
        for number in range(count, 0, -1)
    }


@pytest.mark.parametrize("count", [1, 5, OBJECTS])
def test_few_objects_are_one_batch_whose_sizes_are_their_own(count: int):
    batches = object_batches(objects(count))
    assert batches.ids == (tuple(range(1, count + 1)),)
    assert (batches.rows, batches.prompted, batches.prompts) == (count, 1, 1)
    assert batches.note(batches.ids[0]) == ""


@pytest.mark.parametrize(("count", "sizes"), [(9, [5, 4]), (17, [6, 6, 5]), (104, [8] * 13)])
def test_many_objects_are_batches_of_equal_sizes_of_which_only_the_last_is_filled_up(count: int, sizes: list[int]):
    batches = object_batches(objects(count))
    assert [len(ids) for ids in batches.ids] == sizes and batches.rows == sizes[0]
    assert [number for ids in batches.ids for number in ids] == list(range(1, count + 1))
    assert batches.note(batches.ids[-1]) == f"objects {count - sizes[-1] + 1}-{count} of {count}"


def test_all_batches_have_room_for_the_object_with_the_most_prompted_slices():
    several = SimpleNamespace(prompts=dict.fromkeys(range(5)), pending=list(range(5)))
    batches = object_batches(objects(9, object_2=several))
    assert (batches.prompted, batches.prompts) == (8, 16)  # powers of two of 5 slices, and of 5 + 4 in the batch


def test_a_batch_is_filled_up_with_rows_that_repeat_its_last_object():
    first, second = SimpleNamespace(), SimpleNamespace()
    rows = filled_up([first, second], 4)
    assert [row is second for row in rows] == [False, True, True, True]
    assert is_repeated(rows) == [False, False, True, True]
    assert filled_up([first, second], 1) == [first, second]
