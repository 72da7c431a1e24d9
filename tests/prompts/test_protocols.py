"""How references become prompts."""

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.protocols import PROTOCOLS, clips_of, deciding, prompts_of, prompts_of_objects

SPACING = (5.0, 0.8, 0.8)


def test_protocols_prompt_the_largest_slice_inside_the_object():
    reference = np.zeros((4, 20, 20), bool)
    reference[1, 2:6, 2:6] = True
    reference[2, 5:16, 8:13] = True
    ((click,), (box,)) = (prompts_of(name, reference, SPACING, 3) for name in ("one-click", "box-mid"))
    assert click.slice == box.slice == 2 and click.object_id == box.object_id == 3
    ((x, y),) = click.points
    assert reference[2, int(y), int(x)] and click.box is None and click.labels == (1,)
    assert box.box == (8.0, 5.0, 12.0, 15.0) and not box.points


def test_each_component_gets_a_click_on_its_own_largest_slice():
    reference = np.zeros((8, 20, 20), bool)
    reference[1:3, 2:5, 2:5] = True
    reference[2, 1:6, 1:6] = True
    reference[4:7, 10:13, 10:13] = True
    reference[5, 9:14, 9:14] = True
    reference[7, 14, 14] = True  # touches nothing
    found = prompts_of("one-click-per-component", reference, SPACING, 1)
    assert [(p.slice, p.points) for p in found] == [(2, ((3.0, 3.0),)), (5, ((11.0, 11.0),)), (7, ((14.0, 14.0),))]


def test_the_extent_is_cut_into_clips_and_a_clip_without_the_object_has_no_click():
    reference = np.zeros((20, 8, 8), bool)
    reference[3:5, 2:4, 2:4] = True
    reference[4, 1:5, 1:5] = True
    reference[11:13, 2:5, 2:5] = True
    assert clips_of(reference, 3) == [(3, 6), (6, 9), (9, 12), (12, 13)]
    assert [p.slice for p in prompts_of("oracle-clip", reference, SPACING, 1, clip_slices=3)] == [4, 11, 12]


def test_the_oracle_is_called_one():
    assert PROTOCOLS["oracle-clip"].startswith("oracle: ")


def test_an_unknown_protocol_and_an_empty_reference_are_refused():
    with pytest.raises(UserError, match="choose one of one-click, box-mid, one-click-per-component, oracle-clip"):
        prompts_of("two-clicks", np.ones((1, 2, 2), bool), SPACING, 1)
    with pytest.raises(UserError, match="empty"):
        prompts_of("one-click", np.zeros((1, 2, 2), bool), SPACING, 1)


def test_the_prompts_that_decide_a_class_are_those_of_its_writers_and_of_what_lies_in_them():
    reference = np.zeros((5, 8, 8), int)
    reference[1:4, 1:7, 1:7] = 1
    reference[3, 3:5, 3:5] = 2
    reference[4, 1:3, 1:3] = 3
    prompts = prompts_of_objects("one-click", reference, SPACING, [(1, 2), (2,), (3,), (4,)])
    assert {target: own[0].object_id for target, own in prompts.items()} == {(1, 2): 1, (2,): 2, (3,): 3}
    told = {values: [p.object_id for p in deciding(values, prompts)] for values in ((1,), (2,), (3,), (1, 2), (4,))}
    assert told == {(1,): [1, 2], (2,): [2], (3,): [3], (1, 2): [1, 2], (4,): []}
