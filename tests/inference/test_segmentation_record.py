"""The record of a segmentation: volumes, components, clicks, slices to look at, readable prompts, the model."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from sam2_3dmed_jax import VolumePredictor, load_model, new_model, save_model
from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.inference.keep_component import filter_labels, mask_filter
from sam2_3dmed_jax.inference.predictor import Result
from sam2_3dmed_jax.inference.segment import Segmentation
from sam2_3dmed_jax.inference.segmentation_record import (
    ModelRecord,
    SegmentationRecord,
    check_record_path,
    model_record,
    record_path,
    record_text,
    segmentation_record,
    warn_about,
)
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo
from sam2_3dmed_jax.prompts.files import read_prompt_files
from sam2_3dmed_jax.prompts.voxel_prompts import (
    MaskFile,
    VolumePrompts,
    VoxelPrompt,
    box_prompts,
    merge_prompts,
    point_prompts,
)
from sam2_3dmed_jax.volume.geometry import Grid, Volume, from_canonical
from sam2_3dmed_jax.volume.io import write_nifti

# Stored as (superior to inferior, right to left, anterior to posterior): all axes are permuted, one flipped. Canonical
# shape (6, 48, 40); slice d is i = 5 - d in the file. A voxel has 3 x 0.8 x 0.7 mm = 0.00168 mL.
GRID = Grid((6, 40, 48), np.array([[0, -0.8, 0, 5], [0, 0, -0.7, 9], [-3.0, 0, 0, 40], [0, 0, 0, 1.0]]), "scan.nii.gz")
SHAPE = GRID.canonical_shape
VOLUME = Volume(np.random.default_rng(0).normal(40, 100, SHAPE).astype(np.float32), GRID)
SIDE = 8  # of the logits


def model(temperature: float | None = None) -> ModelRecord:
    return ModelRecord(
        preset="nano", image_size=32, srpp=False, bd=False, checkpoint=None, sha256=None, random_weights=False,
        dtype="float32", order="sequential", postprocessing=True, temperature=temperature, provenance={},
    )  # fmt: skip


def labels_with(*blocks: tuple[int, tuple[slice, ...]]) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint16)
    for value, block in blocks:
        labels[block] = value
    return labels


def segmentation(labels: np.ndarray, ids: Sequence[int] = (1,), logit: float = 2.0) -> Segmentation:
    depth = len(labels)
    logits = np.full((len(ids), depth, SIDE, SIDE), logit, np.float32)
    scores = np.full((len(ids), depth), 4.0, np.float32)
    return Segmentation(labels, Result(tuple(ids), logits, scores, np.full((len(ids), depth), 0.9, np.float32)))


def click(d: int, h: float, w: float, label: int = 1, object_id: int = 1) -> VoxelPrompt:
    return VoxelPrompt(object_id, d, ((w, h),), (label,))


def record_of(labels: np.ndarray, *prompts: VoxelPrompt, temperature: float | None = None) -> SegmentationRecord:
    return segmentation_record(
        segmentation(labels), VOLUME, VolumePrompts(list(prompts), {1: "cyst"}), model(temperature), "soft_tissue"
    )


BLOCK = np.s_[1:4, 10:20, 5:15]  # 300 voxels


def test_volume_extent_and_components_are_those_of_the_label_map():
    (entry,) = record_of(labels_with((1, BLOCK), (1, np.s_[5:6, 40:42, 30:35])), click(2, 15, 10))["objects"]
    assert entry["name"] == "cyst" and entry["volume_ml"] == pytest.approx(310 * 0.00168)
    assert entry["share_of_image"] == pytest.approx(310 / (6 * 48 * 40))
    assert (entry["components"], entry["largest_component_share"]) == (2, pytest.approx(300 / 310))
    assert entry["stray_share"] == pytest.approx(10 / 310)
    # Canonical slices 1 to 5 are i = 4 to 0 in the file.
    assert (entry["first_slice"], entry["last_slice"], entry["prompted_slices"]) == (0, 4, [3])


def test_a_good_segmentation_has_no_warnings_and_no_slices_to_look_at():
    record = record_of(labels_with((1, BLOCK)), click(2, 15, 10), click(2, 30, 30, label=0))
    assert record["warnings"] == [] and record["objects"][0]["slices_to_look_at"] == []
    assert record["slice_axis"] == "i" and record["note"] == "for research use only"
    assert json.loads(record_text(record)) == record


def test_clicks_on_the_wrong_side_are_recorded_in_the_files_voxels_and_warned_about():
    labels = labels_with((1, BLOCK))
    # The file's voxel of the canonical place (d, h, w) is where a ramp has its value after going back to file order.
    places = np.arange(labels.size).reshape(SHAPE)
    outside, inside = (np.argwhere(from_canonical(places, GRID) == places[p])[0] for p in ((2, 30, 30), (3, 15, 10)))
    record = record_of(labels, click(2, 30, 30), click(3, 15, 10, label=0), click(2, 15, 10))
    (entry,) = record["objects"]
    assert [(c["voxel"], c["label"], c["inside"]) for c in entry["clicks"][:2]] == [
        (outside.tolist(), 1, False),
        (inside.tolist(), 0, True),
    ]
    first, second = record["warnings"]
    assert first.startswith("object 1 (cyst): 1 of 2 clicks inside of the object are not in its mask (3,")
    assert second.startswith("object 1 (cyst): 1 of 1 clicks outside of the object are in its mask (2,")
    assert [one["slice"] for one in entry["slices_to_look_at"]] == [2, 3]
    with pytest.warns(FileWarning, match="case a: object 1"):
        warn_about(record, "case a: ")


def test_a_click_on_the_outer_border_belongs_to_the_outermost_voxel():
    labels = labels_with((1, np.s_[5:6, 40:48, 30:40]))
    (entry,) = record_of(labels, click(5, 47.5, 39.5))["objects"]
    assert entry["clicks"][0]["inside"]


def test_an_empty_mask_is_warned_about_and_has_no_shares():
    record = record_of(labels_with(), click(2, 15, 10), temperature=1.5)
    assert ["its mask is empty" in warning for warning in record["warnings"]] == [True]
    (entry,) = record["objects"]
    unknown = [entry[name] for name in ("largest_component_share", "stray_share", "first_slice", "confidence")]
    assert unknown == [None] * 4 and entry["volume_ml"] == 0


def test_a_fragmented_mask_is_warned_about_unless_its_components_were_clicked():
    labels = labels_with((1, BLOCK), (1, np.s_[5:6, 30:40, 30:40]))  # a quarter is in the second component
    (warning,) = record_of(labels, click(2, 15, 10))["warnings"]
    assert "its mask has 2 components, and 25% of it is neither in the largest nor clicked" in warning
    assert record_of(labels, click(2, 15, 10), click(5, 35, 35))["warnings"] == []


def test_a_mask_that_fills_half_of_the_image_is_warned_about():
    (warning,) = record_of(labels_with((1, np.s_[:3])), click(2, 15, 10))["warnings"]
    assert "its mask fills 50% of the image" in warning


def test_slices_are_listed_by_predicted_iou_object_score_and_gaps():
    found = segmentation(labels_with((1, np.s_[0:2, 10:20, 5:15]), (1, np.s_[3:5, 10:20, 5:15])))
    found.result.predicted_iou[0, 1] = 0.4
    found.result.predicted_iou[0, 5] = 0.1  # has no mask
    found.result.object_score_logits[0, 4] = 0.1
    record = segmentation_record(found, VOLUME, VolumePrompts([click(0, 15, 10)]), model(), "soft_tissue")
    (entry,) = record["objects"]
    reasons = {one["slice"]: one["reasons"] for one in entry["slices_to_look_at"]}
    assert reasons == {  # slices of the file: 5 - d
        1: ["the model does not know whether the object is on the slice"],
        3: ["the mask has a gap"],
        4: ["predicted IoU is below 0.5"],
    }
    assert entry["predicted_iou"] == pytest.approx([0.1, 0.9, 0.9, 0.9, 0.4, 0.9])
    assert entry["object_score"][1] == pytest.approx(special.expit(0.1), abs=1e-4)


def test_confidence_is_the_mean_probability_at_the_fitted_temperature():
    labels = labels_with((1, BLOCK))
    assert record_of(labels, click(2, 15, 10))["objects"][0]["confidence"] is None
    confidence = record_of(labels, click(2, 15, 10), temperature=4.0)["objects"][0]["confidence"]
    assert confidence == pytest.approx(special.expit(2.0 / 4.0))


def test_the_recorded_prompts_are_read_as_the_same_prompts(tmp_path: Path):
    drawn = tmp_path / "drawn.nii.gz"
    painted = labels_with((7, np.s_[3:4, 20:25, 20:25]))
    write_nifti(drawn, from_canonical(painted, GRID).astype(np.uint8), GRID.affine)
    prompts = merge_prompts(
        [
            *point_prompts(GRID, [((1.25, 30, 7), 1, 1), ((1, 31, 8), 0, 1), ((0, 2, 3), 1, 5)]),
            *box_prompts(GRID, [((1, 10, 20), (3, 14, 26), 2)]),
            VoxelPrompt(3, 3, mask=painted[3] == 7, mask_file=MaskFile(str(drawn), 7)),
        ]
    )
    given = VolumePrompts(prompts, {1: "cyst", 2: "liver"})
    record = segmentation_record(segmentation(labels_with()), VOLUME, given, model(), "soft_tissue")
    file = tmp_path / "again.json"
    file.write_text(json.dumps(record["prompts"]))
    again = read_prompt_files([file], VOLUME)

    def content(prompt: VoxelPrompt) -> tuple[object, ...]:
        mask = None if prompt.mask is None else prompt.mask.tobytes()
        return prompt.object_id, prompt.slice, prompt.points, prompt.labels, prompt.box, mask

    assert sorted(map(content, merge_prompts(again.prompts))) == sorted(map(content, prompts))
    assert again.names == given.names


@pytest.mark.parametrize(("rule", "kept"), [("largest", {"large"}), ("clicked", {"middle", "small"})])
def test_one_component_is_kept_by_size_or_by_each_click(rule, kept):
    parts = {"large": BLOCK, "middle": np.s_[2:3, 30:38, 5:15], "small": np.s_[5:6, 30:34, 30:34]}
    labels = labels_with(*((1, block) for block in parts.values()), (2, np.s_[0:1, 45:47, 0:5]))
    # The first click is in the middle component; the second is next to the small one, which is the nearest.
    keep = mask_filter(rule, [click(2, 33, 10), click(5, 36, 32), click(0, 45, 2, object_id=2)], GRID.canonical_affine)
    filter_labels(labels, keep)
    assert {name for name, block in parts.items() if (labels[block] == 1).all()} == kept
    assert (labels == 1).sum() == sum((labels[parts[name]] == 1).sum() for name in kept) and (labels == 2).sum() == 10


def test_the_rule_clicked_needs_a_click_inside_of_each_object():
    with pytest.raises(UserError, match="--keep-component clicked: object 2 has no click inside"):
        mask_filter("clicked", [click(2, 15, 10), click(2, 15, 10, label=0, object_id=2)], np.eye(4))


def test_the_record_is_next_to_its_segmentation_and_replaces_no_other_file(tmp_path: Path):
    names = {"seg.nii.gz": "seg.json", "a.b.nii": "a.b.json", "seg.dcm": "seg.json"}
    assert {name: record_path(tmp_path / name).name for name in names} == names
    (tmp_path / "seg.json").write_text('{"objects": []}')
    with pytest.raises(UserError, match=r"seg\.json would be replaced by the record"):
        check_record_path(tmp_path / "seg.nii.gz")
    (tmp_path / "seg.json").write_text(record_text(record_of(labels_with())))
    check_record_path(tmp_path / "seg.nii.gz")


def test_random_weights_are_known_from_the_checkpoint_and_the_hash_follows_its_files(tmp_path: Path):
    save_model(new_model("nano", 64), tmp_path / "ckpt")
    record = model_record(VolumePredictor(load_model(tmp_path / "ckpt")), tmp_path / "ckpt")
    assert record["random_weights"] and record["checkpoint"] == str(tmp_path / "ckpt")
    file = tmp_path / "ckpt" / "config.json"
    file.write_text(file.read_text().replace('"weights": "random"', '"trained_by": "someone"'))
    changed = model_record(VolumePredictor(load_model(tmp_path / "ckpt")), tmp_path / "ckpt")
    assert not changed["random_weights"] and changed["sha256"] != record["sha256"]


def test_random_weights_are_still_known_after_a_conversion():
    converted = CheckpointInfo(ModelConfig("nano"), provenance={"source": "a", "previous": {"weights": "random"}})
    assert converted.has_random_weights
    assert not CheckpointInfo(ModelConfig("nano"), provenance={"source": "a", "previous": {}}).has_random_weights
