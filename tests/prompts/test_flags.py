"""Prompt flags: parsing, conversion to voxel prompts, and errors that name the flag."""

from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.flags import PromptFlags, gather_prompts
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.io import read_volume, write_nifti

SHAPE = (12, 10, 6)  # (x, y, z); canonical columns and rows descend with x and y
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    write_nifti(tmp_path / "scan.nii", np.zeros(SHAPE, np.int16), AFFINE)
    return read_volume(tmp_path / "scan.nii")


def painted(path: Path, z: int, *values: int) -> str:
    labels = np.zeros(SHAPE, np.uint8)
    for row, value in enumerate(values):
        labels[2:8, 2 * row, z] = value
    write_nifti(path, labels, AFFINE)
    return str(path)


def test_a_point_is_inside_object_1_by_default(volume: Volume):
    prompts = gather_prompts(PromptFlags(point=("1,2,3", "1,2,3,0", "1,2,4,0,7")), volume).prompts
    assert [(p.object_id, p.slice, p.labels) for p in prompts] == [(1, 3, (1,)), (1, 3, (0,)), (7, 4, (0,))]


def test_prompts_of_all_types_are_combined(volume: Volume, tmp_path: Path):
    flags = PromptFlags(
        point=("1,2,0",),
        point_mm=("2,6,4,0,2",),
        box=("1,1,2,4,4,3,3",),
        mask=painted(tmp_path / "mask.nii", 4, 4),
        scribble=painted(tmp_path / "strokes.nii", 5, 5, 9),
        scribble_outside="9",
    )
    prompts = gather_prompts(flags, volume).prompts
    assert [(p.object_id, p.slice) for p in prompts] == [(1, 0), (2, 1), (3, 2), (3, 3), (4, 4), (5, 5)]
    assert prompts[1].points == ((10.0, 7.0),) and prompts[2].box == (7, 5, 10, 8)
    assert prompts[4].mask is not None and prompts[4].mask.sum() == 6
    assert sorted(set(prompts[5].labels)) == [0, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (PromptFlags(), "there are no prompts; give --point x,y,z, --point-mm"),
        (
            PromptFlags(point_mm=("4,30,4",)),
            r"--point-mm: voxel y = 10 .*scan\.nii: expected y from 0 to 9",
        ),
        (PromptFlags(point_mm=("nan,3,4",)), "--point-mm: voxel x = nan is outside"),
        (PromptFlags(point=("1,2,3,4",)), "--point: .* has label 4; use 1 for inside and 0"),
        (PromptFlags(point=("1,2,3,1,1.5",)), "--point: 1.5 is not an object id"),
        (PromptFlags(box=("1,1,1,2,2,9",)), "--box: voxel z = 9 is outside"),
        (
            PromptFlags(scribble_outside="9"),
            "--scribble-outside: the scribble is missing; give --scribble STROKES",
        ),
        (PromptFlags(scribble="SCAN", scribble_outside="some"), "--scribble-outside: 'some' is not a value of strokes"),
        (PromptFlags(mask="SCAN"), r"scan\.nii is empty; draw the object"),
    ],
)
def test_an_error_in_a_flag_is_one_sentence_that_names_the_flag(
    volume: Volume, tmp_path: Path, flags: PromptFlags, message: str
):
    scan = (str(tmp_path / "scan.nii"),)
    texts = {name: scan if texts == ("SCAN",) else texts for name, texts in flags.texts.items()}
    with pytest.raises(UserError, match=message):
        gather_prompts(PromptFlags(**texts), volume)
