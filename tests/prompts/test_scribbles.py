"""Scribbles: clicks sampled from the drawn voxels of each slice."""

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.scribbles import POINTS, scribble_prompts, spread_points

SPACING = (3.0, 0.8, 0.8)


def strokes() -> np.ndarray:
    """Return object 1 as two strokes on slice 2, object 5 on slices 2 and 3, and value 9 on slice 2."""
    painted = np.zeros((5, 40, 40), np.int32)
    painted[2, 5, 4:30] = painted[2, 20:36, 3] = 1
    painted[2:4, 30, 20:23] = 5
    painted[2, 38, 10:38] = 9
    return painted


def test_each_value_is_an_object_with_clicks_on_its_voxels_of_each_slice():
    painted = strokes()
    prompts = {(p.object_id, p.slice): p for p in scribble_prompts(painted, SPACING)}
    assert set(prompts) == {(1, 2), (5, 2), (5, 3), (9, 2)}
    for (value, d), prompt in prompts.items():
        assert {painted[d, int(y), int(x)] for x, y in prompt.points} == {value}
        assert len(set(prompt.points)) == len(prompt.labels) == min(POINTS, (painted[d] == value).sum())
        assert set(prompt.labels) == {1}


def test_every_stroke_of_an_object_has_a_click():
    (prompt,) = (p for p in scribble_prompts(strokes(), SPACING) if p.object_id == 1)
    assert {y == 5 for _, y in prompt.points} == {True, False}


def test_strokes_of_the_outside_value_become_negative_clicks_of_all_objects_on_their_slice():
    painted = strokes()
    prompts = {(p.object_id, p.slice): p for p in scribble_prompts(painted, SPACING, outside=9)}
    assert set(prompts) == {(1, 2), (5, 2), (5, 3)}
    for (value, d), prompt in prompts.items():
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            assert painted[d, int(y), int(x)] == (value if label else 9)
        assert (0 in prompt.labels) == (d == 2)


def test_sampled_points_are_far_apart_in_mm_and_reproducible():
    line = np.zeros((9, 41), bool)
    line[4, :] = True
    points = spread_points(line, 3, (1.0, 1.0))
    assert points == ((20.0, 4.0), (0.0, 4.0), (40.0, 4.0)) == spread_points(line, 3, (1.0, 1.0))


@pytest.mark.parametrize(
    ("painted", "outside", "message"),
    [
        (np.zeros((3, 8, 8), np.int32), None, "strokes.nii.gz is empty"),
        (np.full((3, 8, 8), 9, np.int32), 9, "strokes.nii.gz is empty"),
        (np.full((3, 8, 8), -2, np.int32), None, "has the value -2"),
        (np.full((3, 8, 8), 70000, np.int32), None, "has the value 70000"),
    ],
)
def test_strokes_without_an_object_id_are_rejected(painted: np.ndarray, outside: int | None, message: str):
    with pytest.raises(UserError, match=message):
        scribble_prompts(painted, SPACING, "strokes.nii.gz", outside)


def test_a_slice_with_only_outside_strokes_is_rejected():
    painted = strokes()
    painted[4, 1, 1:5] = 9
    with pytest.raises(UserError, match="canonical slice 4 has only strokes outside; draw the object"):
        scribble_prompts(painted, SPACING, outside=9)
