"""Prompts as words: the flags of `predict`, which are the columns of a table of cases too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.prompts.files import PromptSet, read_prompt_files
from sam2_3dmed_jax.prompts.scribbles import scribble_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import (
    MAX_OBJECT_ID,
    Triple,
    VoxelPrompt,
    box_prompts,
    mask_prompts,
    point_prompts,
    voxel_of_mm,
)
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_labels


@dataclass(frozen=True)
class PromptFlags:
    """What stands after each flag, unread."""

    point: tuple[str, ...] = ()  # x,y,z[,1|0[,object]], voxels of the file
    point_mm: tuple[str, ...] = ()  # x,y,z[,1|0[,object]], RAS mm
    box: tuple[str, ...] = ()  # i0,j0,k0,i1,j1,k1[,object], voxels of the file, inclusive
    mask: str | None = None  # label map on the volume's grid
    scribble: str | None = None  # label map of strokes on the volume's grid
    scribble_outside: str | None = None  # the value of strokes that lie outside
    prompts: tuple[str, ...] = ()  # files


def gather_prompts(flags: PromptFlags, volume: Volume) -> PromptSet:
    """All prompts of a volume.

    Raises:
        UserError: there are none, or one does not fit; by flag or file.
    """
    grid = volume.grid
    files = read_prompt_files(flags.prompts, volume)
    found: list[VoxelPrompt] = []
    for text in flags.point:
        found += _point("--point", text, grid)
    for text in flags.point_mm:
        found += _point("--point-mm", text, grid)
    for text in flags.box:
        found += _box("--box", text, grid)
    if flags.mask:
        found += mask_prompts(read_labels(flags.mask, volume), flags.mask)
    if flags.scribble:
        outside = _outside(flags.scribble_outside) if flags.scribble_outside else None
        strokes = read_labels(flags.scribble, volume)
        found += scribble_prompts(strokes, volume.spacing, flags.scribble, outside)
    elif flags.scribble_outside:
        raise UserError("--scribble-outside: there is no scribble; give --scribble STROKES.nii.gz too")
    found += files.prompts
    if not found:
        raise UserError(
            "there are no prompts; give --point x,y,z, --point-mm x,y,z, --box i0,j0,k0,i1,j1,k1, --mask MASK.nii.gz, "
            "--scribble STROKES.nii.gz or --prompts FILE.json"
        )
    return PromptSet(found, files.names)


def _point(flag: str, text: str, grid: Grid) -> list[VoxelPrompt]:
    numbers = _numbers(flag, text, "x,y,z[,1|0[,object]]", (3, 4, 5))
    label, object_id = [*numbers, 1, 1][3:5] if len(numbers) < 5 else numbers[3:]
    if label not in (0, 1):
        raise UserError(f"{flag}: '{text}' has label {label:g}; use 1 for inside and 0 for outside")
    at = _triple(numbers)
    with naming(flag):
        at = voxel_of_mm(grid, at) if flag == "--point-mm" else at
        return point_prompts(grid, [(at, int(label), _object_id(object_id))])


def _box(flag: str, text: str, grid: Grid) -> list[VoxelPrompt]:
    numbers = _numbers(flag, text, "i0,j0,k0,i1,j1,k1[,object]", (6, 7))
    with naming(flag):
        object_id = _object_id(numbers[6] if len(numbers) == 7 else 1)
        return box_prompts(grid, [(_triple(numbers), _triple(numbers[3:]), object_id)])


def _numbers(flag: str, text: str, form: str, counts: Sequence[int]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise UserError(f"{flag}: '{text}' is not {form}; give that many numbers, with commas")
    return numbers


def _triple(numbers: Sequence[float]) -> Triple:
    return numbers[0], numbers[1], numbers[2]


def _object_id(number: float) -> int:
    if not 1 <= number <= MAX_OBJECT_ID or number != int(number):
        raise UserError(f"{number:g} is no object id; use a whole number from 1 to {MAX_OBJECT_ID}")
    return int(number)


def _outside(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= MAX_OBJECT_ID:
        raise UserError(f"--scribble-outside: '{text}' is no value of strokes; use 1 to {MAX_OBJECT_ID}")
    return int(text)
