"""Messages of the page: each form is read, each damaged form is one sentence, and slices keep every voxel."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.page.messages import Box, Clear, Click, Draw, Look, Name, Open, parse_message, slice_update

SHAPE = (7, 5, 3)  # x, y, z


def bits(mask: np.ndarray) -> dict[str, object]:
    height, width = mask.shape
    return {"box": [0, 0, width, height], "bits": base64.b64encode(np.packbits(mask)).decode()}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "open", "image": "ct.nii.gz"}, Open("ct.nii.gz")),
        ({"type": "click", "object": 2, "voxel": [6, 0, 2], "inside": False}, Click(2, (6, 0, 2), False)),
        ({"type": "box", "object": 1, "first": [0, 0, 0], "second": [6, 4, 2]}, Box(1, (0, 0, 0), (6, 4, 2))),
        ({"type": "clear"}, Clear(None)),
        ({"type": "name", "object": 3, "name": "spleen"}, Name(3, "spleen", "")),
        ({"type": "look", "z": 2}, Look(2)),
    ],
)
def test_messages_have_the_fields_that_the_page_sends(fields, expected):
    assert parse_message(json.dumps(fields), SHAPE) == expected


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"type": "click", "object": 1, "voxel": [7, 0, 0], "inside": True}, "voxel"),
        ({"type": "click", "object": 1, "voxel": [0, 0], "inside": True}, "voxel"),
        ({"type": "click", "object": 0, "voxel": [0, 0, 0], "inside": True}, "object"),
        ({"type": "click", "object": 1, "voxel": [0, 0, 0], "inside": 1}, "inside"),
        ({"type": "click", "object": 1, "inside": True}, "voxel"),
        ({"type": "look", "z": 3}, "z"),
        ({"type": "draw", "object": 1, "z": 0, "mask": {"box": [5, 0, 3, 1], "bits": "AA=="}}, "mask.box"),
        ({"type": "draw", "object": 1, "z": 0, "mask": {"box": [0, 0, 3, 1], "bits": "!"}}, "mask.bits"),
        ({"type": "draw", "object": 1, "z": 0, "mask": {"box": [0, 0, 7, 5], "bits": "AA=="}}, "mask.bits"),
        ({"type": "draw", "object": 1, "z": 0, "mask": {"box": [0, 0, 3, 1], "bits": 7}}, "mask.bits"),
        ({"type": "fly"}, "type"),
        ([], "message"),
        ({}, "type"),
    ],
)
def test_a_damaged_message_is_refused_by_the_field(fields, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")) as refusal:
        parse_message(json.dumps(fields), SHAPE)
    assert len(str(refusal.value)) <= 300


@pytest.mark.parametrize("text", ["", "nonsense", "[" * 100_000, '{"type": "click"', "null", '{"type": NaN}'])
def test_text_that_is_no_message_is_refused(text):
    with pytest.raises(UserError, match="message"):
        parse_message(text, SHAPE)


def test_prompts_are_refused_while_no_image_is_open():
    with pytest.raises(UserError, match="open one first"):
        parse_message('{"type": "undo"}', None)


@given(st.lists(st.booleans(), min_size=35, max_size=35))
def test_a_drawn_slice_keeps_every_voxel(voxels):
    mask = np.array(voxels).reshape(5, 7)
    message = parse_message(json.dumps({"type": "draw", "object": 1, "z": 1, "mask": bits(mask)}), SHAPE)
    assert isinstance(message, Draw)
    np.testing.assert_array_equal(message.mask, mask)


@given(st.lists(st.booleans(), min_size=35, max_size=35))
def test_a_sent_slice_is_the_box_of_its_voxels_and_their_bits(voxels):
    mask = np.array(voxels).reshape(5, 7)
    update = slice_update(300, 70_000, 2, mask)
    kind, number, z, x, y, width, height = (int.from_bytes(update[at : at + n], "little") for at, n in
                                            ((0, 1), (2, 2), (8, 2), (10, 2), (12, 2), (14, 2), (16, 2)))  # fmt: skip
    assert (kind, number, z, int.from_bytes(update[4:8], "little")) == (1, 300, 2, 70_000)
    received = np.zeros_like(mask)
    part = np.unpackbits(np.frombuffer(update[18:], np.uint8), count=width * height).reshape(height, width)
    received[y : y + height, x : x + width] = part
    np.testing.assert_array_equal(received, mask)
