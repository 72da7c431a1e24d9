"""The table of prompt types: a new type is one entry, and an incomplete one is rejected."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.case_table import read_cases
from sam2_3dmed_jax.prompts.files import read_prompt_files
from sam2_3dmed_jax.prompts.flags import PromptFlags, add_prompt_arguments, gather_prompts
from sam2_3dmed_jax.prompts.perturbation import simulated_prompt_types
from sam2_3dmed_jax.prompts.prompt_types import PROMPT_TYPES, JsonObject, PromptFlag, PromptType, prompt_type_table
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, box_prompts
from sam2_3dmed_jax.runtime.json_fields import Field
from sam2_3dmed_jax.volume.geometry import Grid, Volume

GRID = Grid((12, 10, 6), np.diag([-2.0, -3.0, 4.0, 1.0]), "scan.nii.gz")  # Canonical (x, y) are the axes of the file.


# A new prompt type: a circle on an axial slice, given by its centre and radius in voxels, becomes the box around it.
CIRCLE_FLAG = PromptFlag("circle", "x,y,z,radius[,object]", "a circle on an axial slice", repeatable=True)


def circle_prompts(grid: Grid, numbers: list[float], object_id: int) -> list[VoxelPrompt]:
    x, y, z, radius = numbers
    return box_prompts(grid, [((x - radius, y - radius, z), (x + radius, y + radius, z), object_id)])


def circles_from_flags(texts, volume: Volume) -> list[VoxelPrompt]:
    prompts = []
    for text in texts["circle"]:
        *numbers, object_id = [*CIRCLE_FLAG.numbers(text, (4, 5)), 1][:5]
        prompts += circle_prompts(volume.grid, numbers, int(object_id))
    return prompts


def circles_from_json(value: Field, owner: JsonObject) -> list[VoxelPrompt]:
    circles = [circle.numbers(4, "x, y, z, radius") for circle in value.items()]
    return [p for numbers in circles for p in circle_prompts(owner.volume.grid, numbers, owner.object_id)]


CIRCLE = PromptType(
    name="circle",
    flags=(CIRCLE_FLAG,),
    from_flags=circles_from_flags,
    json_key="circles",
    from_json=circles_from_json,
)


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Volume:
    """A volume, with circles among the prompt types."""
    monkeypatch.setitem(PROMPT_TYPES, "circle", CIRCLE)
    return Volume(np.zeros(GRID.canonical_shape, np.float32), GRID)


def test_a_new_prompt_type_is_a_flag(volume: Volume):
    parser = argparse.ArgumentParser()
    add_prompt_arguments(parser)
    assert "--circle x,y,z,radius[,object]" in " ".join(parser.format_help().split())
    flags = PromptFlags.from_options(parser.parse_args(["--circle", "5,4,3,2", "--circle", "5,4,2,1,7"]))
    first, second = gather_prompts(flags, volume).prompts
    assert (first.object_id, first.slice, first.box) == (1, 3, (3, 2, 7, 6))
    assert (second.object_id, second.slice, second.box) == (7, 2, (4, 3, 6, 5))
    with pytest.raises(UserError, match="--circle: '1,2' is not x,y,z,radius"):
        gather_prompts(PromptFlags(circle="1,2"), volume)
    with pytest.raises(
        UserError, match=r"there are no prompts; give .* --circle x,y,z,radius, --prompts FILE.json or --prompts-from"
    ):
        gather_prompts(PromptFlags(), volume)


def test_a_new_prompt_type_is_a_key_of_json_files(volume: Volume, tmp_path: Path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"objects": [{"id": 9, "circles": [[5, 4, 3, 2]]}]}))
    (prompt,) = read_prompt_files([path], volume).prompts
    assert (prompt.object_id, prompt.slice, prompt.box) == (9, 3, (3, 2, 7, 6))
    path.write_text(json.dumps({"objects": [{"id": 9}]}))
    with pytest.raises(UserError, match=r"has no prompts; add points, boxes, mask, scribble or circles"):
        read_prompt_files([path], volume)


def test_a_new_prompt_type_is_a_column_of_case_tables(volume: Volume, tmp_path: Path):
    (tmp_path / "cases.csv").write_text('image,circle\na.nii.gz,"5,4,3,2; 5,4,2,1,7"')
    (case,) = read_cases(tmp_path / "cases.csv")
    assert case.prompts == PromptFlags(circle=["5,4,3,2", "5,4,2,1,7"])


@pytest.mark.parametrize("part", ["name", "flags", "from_flags", "json_key", "from_json"])
def test_a_prompt_type_without_a_required_part_is_rejected(part: str):
    parts = {field: value for field, value in vars(CIRCLE).items() if field != part}
    with pytest.raises(TypeError, match=part):
        PromptType(**parts)
    with pytest.raises(ValueError, match=f"has no {part}"):
        replace(CIRCLE, **{part: None})


def test_a_slicer_node_without_its_reader_is_rejected():
    with pytest.raises(ValueError, match="only one of slicer_node and from_slicer"):
        replace(CIRCLE, slicer_node="Plane")


@pytest.mark.parametrize(
    ("same", "name"),
    [({"name": "circle"}, "circle"), ({"flags": CIRCLE.flags}, "circle"), ({"json_key": "circles"}, "circles")],
)
def test_prompt_types_with_the_same_name_flag_or_key_are_rejected(same: dict, name: str):
    disk = {"name": "disk", "flags": (PromptFlag("disk", "x", ""),), "json_key": "disks", **same}
    with pytest.raises(ValueError, match=f"'{name}' is in two prompt types"):
        prompt_type_table(CIRCLE, replace(CIRCLE, **disk))


def test_an_unknown_prompt_flag_is_an_error():
    with pytest.raises(TypeError, match="'circle' is not a prompt flag"):
        PromptFlags(circle="1,2,3,4")


def test_points_boxes_and_masks_can_be_simulated():
    assert simulated_prompt_types() == ("point", "box", "mask")
