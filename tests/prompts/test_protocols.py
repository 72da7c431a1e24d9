"""Evaluation protocols: prompts from references."""

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.protocols import PROTOCOLS, clip_ranges, object_prompts, protocol_prompts, relevant_prompts

SPACING = (5.0, 0.8, 0.8)


def test_one_click_and_box_mid_prompt_the_largest_slice():
    reference = np.zeros((4, 20, 20), bool)
    reference[1, 2:6, 2:6] = True
    reference[2, 5:16, 8:13] = True
    ((click,), (box,)) = (protocol_prompts(name, reference, SPACING, 3) for name in ("one-click", "box-mid"))
    assert click.slice == box.slice == 2 and click.object_id == box.object_id == 3
    ((x, y),) = click.points
    assert reference[2, int(y), int(x)] and click.box is None and click.labels == (1,)
    assert box.box == (8.0, 5.0, 12.0, 15.0) and not box.points


def test_each_component_is_clicked_on_its_largest_slice():
    reference = np.zeros((8, 20, 20), bool)
    reference[1:3, 2:5, 2:5] = True
    reference[2, 1:6, 1:6] = True
    reference[4:7, 10:13, 10:13] = True
    reference[5, 9:14, 9:14] = True
    reference[7, 14, 14] = True  # touches nothing
    prompts = protocol_prompts("one-click-per-component", reference, SPACING, 1)
    assert [(p.slice, p.points) for p in prompts] == [(2, ((3.0, 3.0),)), (5, ((11.0, 11.0),)), (7, ((14.0, 14.0),))]


def test_oracle_clips_cover_the_extent_and_empty_clips_have_no_click():
    reference = np.zeros((20, 8, 8), bool)
    reference[3:5, 2:4, 2:4] = True
    reference[4, 1:5, 1:5] = True
    reference[11:13, 2:5, 2:5] = True
    assert clip_ranges(reference, 3) == [(3, 6), (6, 9), (9, 12), (12, 13)]
    assert [p.slice for p in protocol_prompts("oracle-clip", reference, SPACING, 1, clip_slices=3)] == [4, 11, 12]


def test_the_oracle_protocol_is_described_as_an_oracle():
    assert PROTOCOLS["oracle-clip"].startswith("oracle: ")


def test_an_unknown_protocol_and_an_empty_reference_are_rejected():
    with pytest.raises(UserError, match="choose one of one-click, box-mid, one-click-per-component, oracle-clip"):
        protocol_prompts("two-clicks", np.ones((1, 2, 2), bool), SPACING, 1)
    with pytest.raises(UserError, match="empty"):
        protocol_prompts("one-click", np.zeros((1, 2, 2), bool), SPACING, 1)


def test_relevant_prompts_are_those_of_writing_objects_and_of_objects_nested_in_them():
    reference = np.zeros((5, 8, 8), int)
    reference[1:4, 1:7, 1:7] = 1
    reference[3, 3:5, 3:5] = 2
    reference[4, 1:3, 1:3] = 3
    prompts = object_prompts("one-click", reference, SPACING, [(1, 2), (2,), (3,), (4,)])
    assert {target: own[0].object_id for target, own in prompts.items()} == {(1, 2): 1, (2,): 2, (3,): 3}
    values = ((1,), (2,), (3,), (1, 2), (4,))
    ids = {own: [p.object_id for p in relevant_prompts(own, prompts)] for own in values}
    assert ids == {
        (1,): [1, 2],
        (2,): [2],
        (3,): [3],
        (1, 2): [1, 2],
        (4,): [],
    }
