"""Table of prompt types: points, boxes, masks and scribbles.

An entry of `PROMPT_TYPES` is all that a prompt type needs: the flags of `predict`, the columns of case tables, the keys
of JSON files, the nodes of 3D Slicer markups and the simulation from reference masks follow from it. Modules that load
NumPy are imported inside the functions, so that `sam2-3dmed --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam2_3dmed_jax.errors import UserError, naming, plain_number
from sam2_3dmed_jax.prompts.object_ids import MAX_OBJECT_ID, check_object_id
from sam2_3dmed_jax.runtime.local_paths import check_local

if TYPE_CHECKING:
    import numpy as np

    from sam2_3dmed_jax.prompts.voxel_prompts import Triple, VoxelPrompt
    from sam2_3dmed_jax.runtime.json_fields import Field
    from sam2_3dmed_jax.volume.geometry import Grid, Volume
    from sam2_3dmed_jax.volume.label_layers import LabelLayers


@dataclass(frozen=True)
class PromptFlag:
    """A flag of `predict`, which is also a column of case tables.

    Attributes:
        name: as in the column, with underscores.
        metavar: the form of the value, with optional parts in brackets at the end.
        help: help text of the flag.
        repeatable: whether the flag may be repeated; in a table, values are separated by `;`.
        is_file: whether the value is a path, in a table relative to the table.
        is_modifier: whether the flag changes another flag and is not a prompt itself.
    """

    name: str
    metavar: str
    help: str
    repeatable: bool = False
    is_file: bool = False
    is_modifier: bool = False

    @property
    def option(self) -> str:
        """The flag as users write it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def usage(self) -> str:
        """The flag with the required part of its value."""
        return f"{self.option} {self.metavar.partition('[')[0]}"

    def numbers(self, text: str, counts: Sequence[int]) -> list[float]:
        """Parse comma-separated numbers; `counts` are the allowed numbers of them.

        Raises:
            UserError: the text has another form.
        """
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in counts:
            raise UserError(f"{self.option}: '{text}' is not {self.metavar}; give that many numbers, with commas")
        return numbers


DrawnSlices = Sequence[tuple[int, "np.ndarray"]]  # canonical slices on which a mask is drawn, with bool [H, W]


@dataclass(frozen=True)
class JsonObject:
    """The object of a JSON file that prompts are read for."""

    volume: Volume
    object_id: int
    read_labels: Callable[[Path], LabelLayers]  # labels on the canonical grid of the volume
    drawn_slices: Callable[[Path, int | None], DrawnSlices]  # of one value of a file, or of all values


FlagTexts = Mapping[str, Sequence[str]]  # texts by the name of the flag
FlagReader = Callable[[FlagTexts, "Volume"], "list[VoxelPrompt]"]
JsonReader = Callable[["Field", JsonObject], "list[VoxelPrompt]"]
SlicerReader = Callable[["Field", "Grid", int], "list[VoxelPrompt]"]  # node, grid, object id
# From the mask of an object on one slice (bool [H, W], not empty), its spacing (dy, dx) in mm, the object id, the slice
# and, for a random placement, a random generator.
Simulator = Callable[
    ["np.ndarray", tuple[float, float], int, int, "np.random.Generator | None"],
    "VoxelPrompt",
]


@dataclass(frozen=True, kw_only=True)
class PromptType:
    """A kind of prompt, and all ways to give it.

    Attributes:
        name: unique name.
        flags: its flags; their names are unique.
        from_flags: reads the texts of its flags, if any is given.
        json_key: key of an object in JSON files.
        from_json: reads the value of the key.
        slicer_node: type of a node of 3D Slicer markups, if there is one.
        from_slicer: reads the node.
        simulate: makes the prompt from the mask of an object, if evaluations simulate it.
    """

    name: str
    flags: tuple[PromptFlag, ...]
    from_flags: FlagReader
    json_key: str
    from_json: JsonReader
    slicer_node: str | None = None
    from_slicer: SlicerReader | None = None
    simulate: Simulator | None = None

    def __post_init__(self) -> None:
        """Check that nothing is missing.

        Raises:
            ValueError: a required part is missing.
        """
        required = {name: getattr(self, name) for name in ("name", "flags", "from_flags", "json_key", "from_json")}
        if missing := [name for name, value in required.items() if not value]:
            raise ValueError(f"the prompt type '{self.name}' has no {missing[0]}")
        if (self.slicer_node is None) != (self.from_slicer is None):
            raise ValueError(f"the prompt type '{self.name}' has only one of slicer_node and from_slicer")


def prompt_type_table(*types: PromptType) -> dict[str, PromptType]:
    """Return prompt types by name.

    Raises:
        ValueError: two types share a name, a flag, a JSON key or a type of Slicer nodes.
    """
    flags = [flag.name for entry in types for flag in entry.flags]
    keys = [entry.json_key for entry in types]
    nodes = [entry.slicer_node for entry in types if entry.slicer_node]
    for names in ([entry.name for entry in types], flags, keys, nodes):
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"'{repeated[0]}' is in two prompt types")
    return {entry.name: entry for entry in types}


# Points

POINT_FORM = "x,y,z[,1|0[,object]]"
POINT = PromptFlag(
    "point",
    POINT_FORM,
    "a click inside (1) or outside (0) of an object, in voxels; may be repeated",
    repeatable=True,
)
POINT_MM = PromptFlag("point_mm", POINT_FORM, "a click in RAS millimetres; may be repeated", repeatable=True)


def _points_from_flags(texts: FlagTexts, volume: Volume) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.voxel_prompts import point_prompts, voxel_of_mm

    prompts = []
    for flag in (POINT, POINT_MM):
        for text in texts.get(flag.name, ()):
            x, y, z, *rest = flag.numbers(text, (3, 4, 5))
            label, object_id = [*rest, 1, 1][:2] if len(rest) < 2 else rest
            if label not in (0, 1):
                raise UserError(
                    f"{flag.option}: '{text}' has label {plain_number(label)}; use 1 for inside and 0 for outside"
                )
            with naming(flag.option):
                voxel = voxel_of_mm(volume.grid, (x, y, z)) if flag is POINT_MM else (x, y, z)
                prompts += point_prompts(volume.grid, [(voxel, int(label), check_object_id(object_id))])
    return prompts


def _points_from_json(value: Field, owner: JsonObject) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.voxel_prompts import point_prompts

    prompts = []
    for point in value.items():
        fields = point.fields(("voxel", "mm", "label"))
        label = fields["label"].whole(0, 1) if "label" in fields else 1
        (voxel,) = _voxels_from_json(point, owner.volume.grid, 1)
        with naming(f"{point.file}: {point.path}"):
            prompts += point_prompts(owner.volume.grid, [(voxel, label, owner.object_id)])
    return prompts


def _points_from_slicer(node: Field, grid: Grid, object_id: int) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.slicer_markups import point_list_prompts

    return point_list_prompts(node, grid, object_id)


def _simulate_point(
    mask: np.ndarray, spacing: tuple[float, float], object_id: int, index: int, rng: np.random.Generator | None
) -> VoxelPrompt:
    from sam2_3dmed_jax.prompts.simulation import centre_point, random_point
    from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt

    point = centre_point(mask, spacing) if rng is None else random_point(mask, rng)
    return VoxelPrompt(object_id, index, (point,), (1,))


# Boxes

BOX = PromptFlag("box", "i0,j0,k0,i1,j1,k1[,object]", "two inclusive voxel corners; may be repeated", repeatable=True)


def _boxes_from_flags(texts: FlagTexts, volume: Volume) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.voxel_prompts import box_prompts

    prompts = []
    for text in texts.get(BOX.name, ()):
        i0, j0, k0, i1, j1, k1, *rest = BOX.numbers(text, (6, 7))
        with naming(BOX.option):
            object_id = check_object_id(rest[0] if rest else 1)
            prompts += box_prompts(volume.grid, [((i0, j0, k0), (i1, j1, k1), object_id)])
    return prompts


def _boxes_from_json(value: Field, owner: JsonObject) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.voxel_prompts import box_prompts, clipped_box

    prompts = []
    for box in value.items():
        fields = box.fields(("voxel", "mm"))
        first, second = _voxels_from_json(box, owner.volume.grid, 2)
        with naming(f"{box.file}: {box.path}"):
            if "mm" in fields:
                first, second = clipped_box(owner.volume.grid, first, second)
            prompts += box_prompts(owner.volume.grid, [(first, second, owner.object_id)])
    return prompts


def _box_from_slicer(node: Field, grid: Grid, object_id: int) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.slicer_markups import roi_prompts

    return roi_prompts(node, grid, object_id)


def _simulate_box(
    mask: np.ndarray, spacing: tuple[float, float], object_id: int, index: int, rng: np.random.Generator | None
) -> VoxelPrompt:
    from sam2_3dmed_jax.prompts.simulation import box_of
    from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt

    return VoxelPrompt(object_id, index, box=box_of(mask))


# Masks

MASK = PromptFlag(
    "mask",
    "MASK.nii.gz",
    "label map on the grid of IMAGE, DICOM-SEG, RTSTRUCT or .seg.nrrd; its slices are prompts",
    is_file=True,
)


def _mask_from_flags(texts: FlagTexts, volume: Volume) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.voxel_prompts import MaskFile, mask_prompts
    from sam2_3dmed_jax.volume.io import read_label_layers

    (path,) = texts[MASK.name]
    prompts = [prompt for layer in read_label_layers(path, volume).layers for prompt in mask_prompts(layer, path)]
    return [replace(prompt, mask_file=MaskFile(path, prompt.object_id)) for prompt in prompts]


def _mask_from_json(value: Field, owner: JsonObject) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.voxel_prompts import MaskFile, VoxelPrompt

    path, fields = _file_from_json(value, ("file", "value"))
    chosen = fields["value"].whole(1, MAX_OBJECT_ID) if "value" in fields else None
    drawn, source = owner.drawn_slices(path, chosen), MaskFile(str(path), chosen)
    if not drawn:
        raise UserError(f"{value.file}: {value.path} is empty; draw the object on at least one slice")
    return [VoxelPrompt(owner.object_id, index, mask=mask, mask_file=source) for index, mask in drawn]


def _simulate_mask(
    mask: np.ndarray, spacing: tuple[float, float], object_id: int, index: int, rng: np.random.Generator | None
) -> VoxelPrompt:
    from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt

    return VoxelPrompt(object_id, index, mask=mask)


# Scribbles

SCRIBBLE = PromptFlag(
    "scribble",
    "STROKES.nii.gz",
    "strokes on the grid of IMAGE, whose values are object ids; clicks are sampled from them",
    is_file=True,
)
SCRIBBLE_OUTSIDE = PromptFlag(
    "scribble_outside",
    "VALUE",
    "value of the strokes that are outside of the objects",
    is_modifier=True,
)


def _scribble_from_flags(texts: FlagTexts, volume: Volume) -> list[VoxelPrompt]:
    from sam2_3dmed_jax.prompts.scribbles import scribble_prompts
    from sam2_3dmed_jax.volume.io import read_labels

    outside = None
    if texts.get(SCRIBBLE_OUTSIDE.name):
        (text,) = texts[SCRIBBLE_OUTSIDE.name]
        if not texts.get(SCRIBBLE.name):
            raise UserError(f"{SCRIBBLE_OUTSIDE.option}: the scribble is missing; give {SCRIBBLE.usage} too")
        if not text.isdecimal() or not 1 <= int(text[:6]) <= MAX_OBJECT_ID:
            raise UserError(f"{SCRIBBLE_OUTSIDE.option}: '{text}' is not a value of strokes; use 1 to {MAX_OBJECT_ID}")
        outside = int(text)
    (path,) = texts[SCRIBBLE.name]
    return scribble_prompts(read_labels(path, volume), volume.spacing, path, outside)


def _scribble_from_json(value: Field, owner: JsonObject) -> list[VoxelPrompt]:
    import numpy as np

    from sam2_3dmed_jax.prompts.scribbles import scribble_prompts

    path, fields = _file_from_json(value, ("file", "inside", "outside"))
    labels = owner.read_labels(path).flat()
    outside = fields["outside"].whole(1, MAX_OBJECT_ID) if "outside" in fields else 0
    inside = labels == fields["inside"].whole(1, MAX_OBJECT_ID) if "inside" in fields else labels != 0
    strokes = np.where(inside, owner.object_id, 0)
    strokes[(labels == outside) & (outside > 0)] = -1
    return scribble_prompts(strokes, owner.volume.spacing, f"{value.file}: {value.path}", outside=-1)


# Parts of JSON values that several types share


def _voxels_from_json(item: Field, grid: Grid, count: int) -> list[Triple]:
    """Return `count` points in voxels of the file, from the three numbers each under `voxel` or `mm`."""
    from sam2_3dmed_jax.prompts.voxel_prompts import voxel_of_mm

    fields = item.fields()
    if ("voxel" in fields) == ("mm" in fields):
        raise item.wrong("either 'voxel' or 'mm'")
    coordinates = fields.get("voxel") or fields["mm"]
    numbers = coordinates.numbers(3 * count, "x, y, z" if count == 1 else "two opposite corners")
    triples = [(numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, len(numbers), 3)]
    return triples if "voxel" in fields else [voxel_of_mm(grid, mm) for mm in triples]


def _file_from_json(item: Field, known: tuple[str, ...]) -> tuple[Path, dict[str, Field]]:
    """Return the file that a mask or scribble names, relative to the JSON file, and its other fields."""
    fields = {"file": item} if isinstance(item.value, str) else item.fields(known, ("file",))
    check_local(file := fields["file"].text())
    return Path(item.file).parent / file, fields


PROMPT_TYPES = prompt_type_table(
    PromptType(
        name="point",
        flags=(POINT, POINT_MM),
        from_flags=_points_from_flags,
        json_key="points",
        from_json=_points_from_json,
        slicer_node="Fiducial",
        from_slicer=_points_from_slicer,
        simulate=_simulate_point,
    ),
    PromptType(
        name="box",
        flags=(BOX,),
        from_flags=_boxes_from_flags,
        json_key="boxes",
        from_json=_boxes_from_json,
        slicer_node="ROI",
        from_slicer=_box_from_slicer,
        simulate=_simulate_box,
    ),
    PromptType(
        name="mask",
        flags=(MASK,),
        from_flags=_mask_from_flags,
        json_key="mask",
        from_json=_mask_from_json,
        simulate=_simulate_mask,
    ),
    PromptType(
        name="scribble",
        flags=(SCRIBBLE, SCRIBBLE_OUTSIDE),
        from_flags=_scribble_from_flags,
        json_key="scribble",
        from_json=_scribble_from_json,
    ),
)
PROMPT_FILES = PromptFlag(
    "prompts",
    "FILE.json",
    "JSON file of prompts, or .mrk.json of 3D Slicer; may be repeated",
    repeatable=True,
    is_file=True,
)
PROMPTS_FROM = PromptFlag(
    "prompts_from",
    "LABELS|FOLDER",
    "label map of an automatic method or of an earlier scan, or folder with one mask per object, from which prompts "
    "are drawn; with --msd-test, folder of predictions of the test images",
    is_file=True,
)


def prompt_flags() -> list[PromptFlag]:
    """Return the flags of all prompt types, and the flags of prompt files and of label maps to draw prompts from."""
    return [*(flag for entry in PROMPT_TYPES.values() for flag in entry.flags), PROMPT_FILES, PROMPTS_FROM]
