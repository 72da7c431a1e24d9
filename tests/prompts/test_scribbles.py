"""Painted strokes become a few clicks on each slice, all of them on painted voxels."""

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.scribbles import POINTS, scribble_prompts, spread_points

SPACING = (3.0, 0.8, 0.8)


def strokes() -> np.ndarray:
    """Object 1 as two strokes on slice 2, object 5 on slices 2 and 3, and value 9 beside them on slice 2."""
    painted = np.zeros((5, 40, 40), np.int32)
    painted[2, 5, 4:30] = painted[2, 20:36, 3] = 1
    painted[2:4, 30, 20:23] = 5
    painted[2, 38, 10:38] = 9
    return painted


def test_each_value_is_an_object_clicked_on_its_own_voxels_of_each_slice_it_touches():
    painted = strokes()
    found = {(p.object_id, p.slice): p for p in scribble_prompts(painted, SPACING)}
    assert set(found) == {(1, 2), (5, 2), (5, 3), (9, 2)}
    for (value, d), prompt in found.items():
        assert {painted[d, int(y), int(x)] for x, y in prompt.points} == {value}
        assert len(set(prompt.points)) == len(prompt.labels) == min(POINTS, (painted[d] == value).sum())
        assert set(prompt.labels) == {1}


def test_every_stroke_of_an_object_on_a_slice_is_clicked():
    (prompt,) = (p for p in scribble_prompts(strokes(), SPACING) if p.object_id == 1)
    assert {y == 5 for _, y in prompt.points} == {True, False}


def test_strokes_of_the_outside_value_are_negative_clicks_of_the_objects_on_their_slice():
    painted = strokes()
    found = {(p.object_id, p.slice): p for p in scribble_prompts(painted, SPACING, outside=9)}
    assert set(found) == {(1, 2), (5, 2), (5, 3)}
    for (value, d), prompt in found.items():
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            assert painted[d, int(y), int(x)] == (value if label else 9)
        assert (0 in prompt.labels) == (d == 2)


def test_the_choice_is_far_apart_in_mm_and_the_same_each_time():
    line = np.zeros((9, 41), bool)
    line[4, :] = True
    points = spread_points(line, 3, (1.0, 1.0))
    assert points == ((20.0, 4.0), (0.0, 4.0), (40.0, 4.0)) == spread_points(line, 3, (1.0, 1.0))


@pytest.mark.parametrize(
    ("painted", "outside", "named"),
    [
        (np.zeros((3, 8, 8), np.int32), None, "strokes.nii.gz is empty"),
        (np.full((3, 8, 8), 9, np.int32), 9, "strokes.nii.gz is empty"),
        (np.full((3, 8, 8), -2, np.int32), None, "holds the value -2"),
        (np.full((3, 8, 8), 70000, np.int32), None, "holds the value 70000"),
    ],
)
def test_strokes_that_name_no_object_are_refused(painted: np.ndarray, outside: int | None, named: str):
    with pytest.raises(UserError, match=named):
        scribble_prompts(painted, SPACING, "strokes.nii.gz", outside)


def test_a_slice_with_outside_strokes_alone_is_refused():
    painted = strokes()
    painted[4, 1, 1:5] = 9
    with pytest.raises(UserError, match="canonical slice 4 has strokes outside alone; paint the object"):
        scribble_prompts(painted, SPACING, outside=9)
