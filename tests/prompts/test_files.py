"""Prompts from JSON files of this project and of 3D Slicer, and errors in them."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.files import add_labels, objects_json, read_prompt_files
from sam2_3dmed_jax.prompts.voxel_prompts import VolumePrompts
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.geometry import Volume, from_canonical, voxel_to_canonical
from sam2_3dmed_jax.volume.io import read_volume, write_nifti

# Stored as (superior to inferior, right to left, anterior to posterior): all axes are permuted, one is flipped.
AFFINE = np.array([[0, -0.8, 0, 5], [0, 0, -0.7, 9], [-3.0, 0, 0, 40], [0, 0, 0, 1.0]])
SHAPE = (6, 40, 48)
VOXEL = (1, 30, 7)
RAS = (AFFINE @ [*VOXEL, 1])[:3]
LPS = RAS * (-1, -1, 1)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_nifti(path, np.zeros(SHAPE, np.int16), AFFINE)
    return read_volume(path)


def read(volume: Volume, folder: Path, *contents: Any) -> VolumePrompts:
    paths = [folder / f"prompts{number}.json" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_prompt_files(paths, volume)


def objects(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"objects": list(entries)}


def points(system: Any = "LPS", **more: Any) -> dict[str, Any]:
    placed = [{"label": "F-1", "position": LPS.tolist(), "positionStatus": "defined"}]
    return {"type": "Fiducial", "coordinateSystem": system, "controlPoints": placed, **more}


def roi(centre: Any, size: Any, **more: Any) -> dict[str, Any]:
    centre, size = np.asarray(centre, float).tolist(), np.asarray(size, float).tolist()
    return {"type": "ROI", "roiType": "Box", "coordinateSystem": "RAS", "center": centre, "size": size, **more}


def test_voxels_and_mm_of_an_object_are_the_same_voxel(volume: Volume, tmp_path: Path):
    entry = {"id": 4, "name": "spleen", "points": [{"voxel": VOXEL}, {"mm": RAS.tolist(), "label": 0}]}
    result = read(volume, tmp_path, objects(entry))
    d, h, w = voxel_to_canonical(volume.grid, VOXEL)
    assert [(p.object_id, p.slice, p.labels) for p in result.prompts] == [(4, d, (1,)), (4, d, (0,))]
    for prompt in result.prompts:
        assert prompt.points[0] == pytest.approx((w, h), abs=1e-3)  # float32 in the header
    assert result.names == {4: "spleen"}


def test_an_object_may_have_a_code_and_a_colour_which_are_written_again(volume: Volume, tmp_path: Path):
    entry = {"name": "node", "code": "59441001", "color": "#44AC64", "points": [{"voxel": VOXEL}]}
    result = read(volume, tmp_path, objects(entry))
    assert result.labels() == {1: ObjectLabel("node", "59441001", "#44ac64")}
    assert read(volume, tmp_path, objects_json(result, volume.grid)).labels() == result.labels()
    named = add_labels(read(volume, tmp_path, objects({**entry, "id": 3})), {3: ObjectLabel("node")}, "--classes")
    assert named.labels() == {3: ObjectLabel("node", "59441001", "#44ac64")}
    with pytest.raises(UserError, match="--classes: object 1 is 'spleen', but 'node' before"):
        add_labels(result, {1: ObjectLabel("spleen")}, "--classes")


@pytest.mark.parametrize(
    ("key", "value"), [("code", "abc"), ("code", 59441001), ("color", "red"), ("color", [1, 2, 3])]
)
def test_a_wrong_code_or_colour_is_refused_with_its_field(volume: Volume, tmp_path: Path, key: str, value: Any):
    with pytest.raises(UserError, match=rf"prompts0\.json: objects\[0\]\.{key}"):
        read(volume, tmp_path, objects({key: value, "points": [{"voxel": VOXEL}]}))


def test_boxes_cover_the_same_slices_in_voxels_and_in_mm(volume: Volume, tmp_path: Path):
    corners = [(1, 10, 20), (3, 14, 26)]
    mm = [(volume.grid.affine @ [*corner, 1])[:3] for corner in corners]
    boxes = [{"voxel": np.ravel(corners).tolist()}, {"mm": np.ravel(mm).tolist()}]
    result = read(volume, tmp_path, objects({"boxes": boxes[:1]}, {"boxes": boxes[1:]})).prompts
    one, other = ([(p.slice, p.box) for p in result if p.object_id == k] for k in (1, 2))
    assert len(one) == 3 and [s for s, _ in one] == [s for s, _ in other]
    np.testing.assert_allclose([box for _, box in one], [box for _, box in other], atol=1e-3)


def test_masks_and_scribbles_are_relative_to_the_file_and_may_be_one_value(volume: Volume, tmp_path: Path):
    drawn = np.zeros(volume.array.shape, np.uint8)
    drawn[2, 3:9, 3:9], drawn[4, 20:30, 20:30], drawn[4, 5, 5:9] = 3, 4, 7
    write_nifti(tmp_path / "drawn.nii.gz", from_canonical(drawn, volume.grid), AFFINE)
    result = read(
        volume,
        tmp_path,
        objects(
            {"id": 8, "mask": {"file": "drawn.nii.gz", "value": 3}},
            {"id": 9, "scribble": {"file": "drawn.nii.gz", "inside": 4, "outside": 7}},
            {"id": 5, "mask": "drawn.nii.gz"},
        ),
    )
    by_object = {k: [p for p in result.prompts if p.object_id == k] for k in (8, 9, 5)}
    assert [p.slice for p in by_object[8]] == [2] and np.array_equal(by_object[8][0].mask, drawn[2] == 3)
    (scribble,) = by_object[9]
    values = [drawn[4, int(y), int(x)] for x, y in scribble.points]
    assert set(zip(values, scribble.labels, strict=True)) == {(4, 1), (7, 0)}
    assert [p.slice for p in by_object[5]] == [2, 4] and np.array_equal(by_object[5][1].mask, drawn[4] > 0)


def test_the_example_of_the_docs_is_read(volume: Volume, tmp_path: Path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "prompts.md").read_text(encoding="utf-8")
    example = re.search(r"<!-- prompts example -->\n```json\n(.*?)```", page, re.DOTALL)
    assert example
    write_nifti(tmp_path / "scan.nii", np.zeros((16, 16, 8), np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]))
    image = read_volume(tmp_path / "scan.nii")
    for name, value in (("organs", 4), ("strokes", 1)):
        painted = np.zeros((16, 16, 8), np.uint8)
        painted[3:6, 3:6, 4 if name == "organs" else 5] = value
        write_nifti(tmp_path / f"{name}.nii.gz", painted, image.grid.affine)
    result = read(image, tmp_path, example[1])
    assert [(p.object_id, p.slice) for p in result.prompts] == [(1, 2), (1, 2), (1, 3), (1, 4), (2, 4), (2, 5)]
    assert result.names == {1: "spleen"}


@pytest.mark.parametrize(
    ("system", "position"), [("LPS", LPS), ("RAS", RAS), (1, LPS), (0, RAS)], ids=["LPS", "RAS", "1", "0"]
)
def test_points_of_slicer_are_read_in_their_coordinate_system(
    volume: Volume, tmp_path: Path, system: Any, position: np.ndarray
):
    placed = [
        {"label": "F-1", "position": position.tolist()},
        {"label": "-bowel", "position": position.tolist(), "positionStatus": "defined"},
        {"label": "F-3", "position": None, "positionStatus": "undefined"},
    ]
    result = read(volume, tmp_path, {"@schema": "markups", "markups": [points(system, controlPoints=placed)]})
    d, h, w = voxel_to_canonical(volume.grid, VOXEL)
    assert [(p.slice, p.labels) for p in result.prompts] == [(d, (1,)), (d, (0,))]
    assert result.prompts[0].points[0] == pytest.approx((w, h), abs=1e-3)


def test_slicer_nodes_are_numbered_across_files_and_nodes_with_one_name_are_one_object(volume: Volume, tmp_path: Path):
    box = roi(RAS, (1, 1, 1), name="spleen")
    result = read(
        volume, tmp_path, {"markups": [points(name="liver"), points(name="spleen")]}, {"markups": [box, points()]}
    )
    assert [p.object_id for p in result.prompts] == [1, 2, 2, 3]
    assert result.names == {1: "liver", 2: "spleen"}


def test_a_slicer_roi_becomes_the_box_of_the_enclosed_voxels(volume: Volume, tmp_path: Path):
    low, high = np.array([1, 10, 20]), np.array([3, 14, 26])
    centre = (volume.grid.affine @ [*((low + high) / 2), 1])[:3]
    size = np.abs(volume.grid.affine[:3, :3] @ (high - low + 0.5))  # 0.25 voxels beyond centres
    turned = [-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0]
    result = read(volume, tmp_path, {"markups": [roi(centre, size, orientation=turned)]}).prompts
    (d0, h0, w0), (d1, h1, w1) = np.sort([voxel_to_canonical(volume.grid, v) for v in (low, high)], axis=0)
    assert [p.slice for p in result] == list(range(int(d0), int(d1) + 1))
    for prompt in result:
        np.testing.assert_allclose(prompt.box, (w0 - 0.25, h0 - 0.25, w1 + 0.25, h1 + 0.25), atol=1e-3)


def test_a_slicer_roi_may_cover_the_whole_volume(volume: Volume, tmp_path: Path):
    centre = (volume.grid.affine @ [*((np.array(SHAPE) - 1) / 2), 1])[:3]
    size = np.abs(volume.grid.affine[:3, :3] @ SHAPE)
    result = read(volume, tmp_path, {"markups": [roi(centre, size)]}).prompts
    assert [p.slice for p in result] == list(range(SHAPE[0]))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [-1, 1])
def test_a_box_in_mm_that_reaches_beyond_the_volume_is_cut_at_its_border(
    volume: Volume, tmp_path: Path, axis: int, end: int
):
    low, high = np.full(3, 0.75), np.array(SHAPE) - 1.75
    inside = low.copy(), high.copy()
    (low if end < 0 else high)[axis] += 4 * end  # 3 voxels and more beyond the outermost one
    inside[0 if end < 0 else 1][axis] = -0.5 if end < 0 else SHAPE[axis] - 0.5
    (d0, h0, w0), (d1, h1, w1) = np.sort([voxel_to_canonical(volume.grid, v) for v in inside], axis=0)
    corners = [(volume.grid.affine @ [*corner, 1])[:3] for corner in (low, high)]
    drawn = roi((corners[0] + corners[1]) / 2, np.abs(corners[1] - corners[0]))
    entry = {"boxes": [{"mm": np.concatenate(corners).tolist()}]}
    for content in ({"markups": [drawn]}, objects(entry)):
        result = read(volume, tmp_path, content).prompts
        slices = range(max(int(np.floor(d0 + 0.5)), 0), min(int(np.floor(d1 + 0.5)), SHAPE[0] - 1) + 1)
        assert [p.slice for p in result] == list(slices)
        for prompt in result:
            np.testing.assert_allclose(prompt.box, (w0, h0, w1, h1), atol=1e-3)


TILTED = [0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"objects": [{"points": [{"voxel": [NaN, 1, 1]}]}]}', "NaN is not a number"),
        ('{"objects": [{"points": [{"voxel": [1e999, 1, 1]}]}]}', r"objects\[0\].points\[0\].voxel is \[inf"),
        ("[]", r"the file is \[\]; give an object with objects"),
        ({}, "has no 'objects'"),
        ({"objects": {}}, "objects is {}; give a list"),
        (objects({"pionts": []}), r"objects\[0\] has the key 'pionts'; the known keys are id, name, code, color"),
        (objects({"id": 1}), r"objects\[0\] has no prompts; add points"),
        (objects({"id": 0}), r"objects\[0\].id is 0; give a whole number from 1 to 65535"),
        (objects({"id": True}), "id is true"),
        (objects({"name": "../up", "points": []}), "name is .*; give a name of at most 64"),
        (objects({"points": [{"voxel": [1, 2]}]}), r"points\[0\].voxel is \[1, 2\]; give 3 numbers, x, y, z"),
        (objects({"points": [{"voxel": [1, 2, 3], "mm": [1, 2, 3]}]}), "give either 'voxel' or 'mm'"),
        (objects({"points": [{"voxel": [1, 2, 3], "label": 2}]}), "label is 2; give a whole number from 0 to 1"),
        (objects({"points": [{"voxel": [1, 2, 99]}]}), r"points\[0\]: voxel z = 99 is outside .*from 0 to 47"),
        (objects({"boxes": [{"mm": [0, 0, 0, 0, 0, 0]}]}), r"boxes\[0\]: voxel .* is outside"),
        (objects({"mask": "absent.nii.gz"}), "absent.nii.gz does not exist"),
        (objects({"mask": {"file": "absent.nii.gz", "valeu": 3}}), "mask has the key 'valeu'"),
        (objects({"id": 1, "points": [{"voxel": VOXEL}]}, {"id": 1}), r"objects\[1\] has the id 1 of an earlier"),
        ({"markups": [points("XYZ")]}, "coordinateSystem is \"XYZ\"; give LPS or RAS"),
        ({"markups": [points([])]}, r"coordinateSystem is \[\]; give LPS or RAS"),
        ({"markups": [{"type": "Fiducial"}]}, "has no 'coordinateSystem'"),
        ({"markups": [points(coordinateUnits="cm")]}, 'coordinateUnits is "cm"; give mm'),
        ({"markups": [points(type="Angle")]}, r"type is \"Angle\"; give Fiducial"),
        ({"markups": [points(controlPoints=[])]}, r"markups\[0\] has no placed points"),
        ({"markups": [points(controlPoints=[{"position": [0, 0]}])]}, r"controlPoints\[0\].position is \[0, 0\]"),
        ({"markups": [points(controlPoints=[{"position": [0, 0, 900]}])]}, "position: voxel x = .* is outside"),
        ({"markups": [roi(RAS, (5, 5, 5), orientation=TILTED)]}, "orientation rotates the ROI against the axes"),
        ({"markups": [roi(RAS + (0, 0, 500), (5, 5, 5))]}, r"markups\[0\]: voxel box .* is outside"),
    ],
)  # fmt: skip
def test_an_error_in_a_file_is_one_sentence_with_file_and_field(
    volume: Volume, tmp_path: Path, content: Any, message: str
):
    with pytest.raises(UserError, match=message) as caught:
        read(volume, tmp_path, content)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 500


def test_an_object_with_two_names_and_two_objects_with_one_name_are_rejected(volume: Volume, tmp_path: Path):
    one, other = ({"id": 1, "name": name, "points": [{"voxel": VOXEL}]} for name in ("liver", "spleen"))
    with pytest.raises(UserError, match="object 1 is 'spleen', but 'liver' before"):
        read(volume, tmp_path, objects(one), objects(other))
    with pytest.raises(UserError, match="two objects have the same name"):
        read(volume, tmp_path, objects(one), objects({**one, "id": 2}))


def test_a_huge_or_missing_file_is_rejected_before_it_is_read(volume: Volume, tmp_path: Path):
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(UserError, match=r"huge\.json has 4096\.0 MiB"):
        read_prompt_files([huge], volume)
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        read_prompt_files([tmp_path / "absent.json"], volume)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_a_device_a_pipe_or_a_folder_instead_of_a_file_of_prompts_is_rejected(
    volume: Volume, tmp_path: Path, kind: str
):
    path = tmp_path / "p.json"
    {"device": lambda: path.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(UserError, match=rf"p\.json is a {kind}, expected a file"):
        read_prompt_files([path], volume)


@pytest.mark.parametrize("key", ["mask", "scribble"])
@pytest.mark.parametrize("name", ["f.nii.gz", "f.nrrd"])
def test_a_pipe_as_the_mask_or_scribble_of_an_object_is_rejected_and_not_waited_for(
    volume: Volume, tmp_path: Path, key: str, name: str
):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)} is a pipe, expected a file"):
        read(volume, tmp_path, objects({key: name}))


def test_many_objects_of_one_mask_file_share_its_slices(volume: Volume, tmp_path: Path):
    drawn = np.zeros(volume.array.shape, np.uint8)
    drawn[2, 3:9, 3:9] = 3
    write_nifti(tmp_path / "drawn.nii.gz", from_canonical(drawn, volume.grid), AFFINE)
    result = read(volume, tmp_path, objects(*({"id": k, "mask": "drawn.nii.gz"} for k in range(1, 301))))
    assert result.files.count(str(tmp_path / "drawn.nii.gz")) == 1  # it is read once
    assert [p.object_id for p in result.prompts] == list(range(1, 301))
    kept = {id(p.mask): p.mask for p in result.prompts if p.mask is not None}
    (mask,) = kept.values()
    assert mask.base is None and mask.shape == drawn.shape[1:]  # one slice, and not a view of the volume
