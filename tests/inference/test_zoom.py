"""Segmentation in regions around prompts: crops of the volume, growth, objects of their own, and what is counted."""

import weakref

import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference import zoom
from sam2_3dmed_jax.inference.device_slices import Slices
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.label_maps import label_map_of_regions
from sam2_3dmed_jax.inference.segment import segment_volume
from sam2_3dmed_jax.inference.zoom import (
    ZoomedVolume,
    extent_of_prompts,
    prompt_in_region,
    segment_with_zoom,
    zoomed_sessions,
)
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.zoom import Extent, Region, RegionLogits, crop, logits_on_slice, touches_border
from tests.helpers.scans import small_model

AFFINE = np.array([[0, -4.0, 0, 5], [0, 0, -3.0, 9], [-3.0, 0, 0, 40], [0, 0, 0, 1.0]])
GRID = Grid((6, 40, 60), AFFINE, "scan.nii.gz")  # canonical (6, 60, 40): 180 mm x 160 mm
CLICK, BOX = VoxelPrompt(1, 2, ((30.0, 20.0),), (1,)), VoxelPrompt(3, 4, box=(10.0, 40.0, 14.0, 44.0))


@pytest.fixture(scope="module")
def volume() -> Volume:
    coarse = np.random.default_rng(3).normal(40, 120, (6, 15, 10))
    return Volume(coarse.repeat(4, 1).repeat(4, 2).astype(np.float32), GRID)


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(small_model())


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions do not grow."""
    monkeypatch.setattr(zoom, "touches_border", lambda *_: False)


def test_a_region_of_the_whole_slice_gives_the_masks_without_zoom(volume: Volume, predictor: VolumePredictor):
    whole = segment_with_zoom(predictor, volume, [CLICK], 500.0)
    off = segment_with_zoom(predictor, volume, [CLICK], "off")
    assert off.labels.any() and not off.result.zooms
    np.testing.assert_array_equal(whole.labels, off.labels)


def test_an_object_is_segmented_in_a_crop_with_the_window_of_the_whole_volume(
    volume: Volume, predictor: VolumePredictor, still: None
):
    segmentation = segment_with_zoom(predictor, volume, [CLICK], "auto")
    (found,) = segmentation.result.zooms
    region = found.region
    assert (found.side_mm, region.shape, found.passes) == (64.0, (21, 16), (6,))
    moved = VoxelPrompt(1, 2, ((30.0 - region.left, 20.0 - region.top),), (1,))
    expected = segment_volume(predictor, crop(volume, region), [moved]).labels
    assert expected.any()
    np.testing.assert_array_equal(segmentation.labels[:, *region.at], expected)
    outside = segmentation.labels.copy()
    outside[:, *region.at] = 0
    assert not outside.any()
    np.testing.assert_array_equal(segmentation.object_mask(1), segmentation.labels == 1)


def test_each_object_has_its_region_and_the_same_mask_as_alone(volume: Volume, predictor: VolumePredictor, still: None):
    both = segment_with_zoom(predictor, volume, [BOX, CLICK], "auto")
    assert both.result.object_ids == (1, 3) and len({found.region for found in both.result.zooms}) == 2
    for prompt in (CLICK, BOX):
        alone = segment_with_zoom(predictor, volume, [prompt], "auto")
        np.testing.assert_array_equal(both.object_mask(prompt.object_id), alone.labels > 0)


def test_where_regions_overlap_the_larger_logit_wins():
    logits = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    regions = Region(0, 0, 20, 20), Region(10, 5, 12, 25)
    objects = [RegionLogits(own, region) for own, region in zip(logits, regions, strict=True)]
    labels = label_map_of_regions(objects, [4, 2], (40, 30))
    on_voxels = np.stack([[logits_on_slice(own, d, (40, 30)) for d in range(3)] for own in objects])
    expected = np.where(on_voxels.max(0) > 0, np.array([4, 2])[on_voxels.argmax(0)], 0)
    assert {2, 4} <= set(labels[:, 10:20, 5:20].flat)
    np.testing.assert_array_equal(labels, expected)


def test_a_region_grows_until_the_mask_of_no_slice_touches_its_border(volume: Volume, predictor: VolumePredictor):
    segmentation = segment_with_zoom(predictor, volume, [CLICK, BOX], 20.0)
    for row, found in enumerate(segmentation.result.zooms):
        sides = found.region.open_sides((60, 40))
        assert found.growths and not any(
            touches_border(mask > 0, sides) for mask in segmentation.result.mask_logits[row]
        )
        assert found.passes[-1] == 6 and all(1 <= slices <= 6 for slices in found.passes)
    again = segment_with_zoom(predictor, volume, [BOX, CLICK], 20.0)
    np.testing.assert_array_equal(again.labels, segmentation.labels)
    assert again.result.zooms == segmentation.result.zooms


def test_a_mask_that_touches_every_border_ends_at_the_whole_slice_after_few_rounds(
    volume: Volume, predictor: VolumePredictor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(zoom, "touches_border", lambda mask, sides: any(sides))
    monkeypatch.setattr(zoom, "extent_of_mask", lambda mask: Extent(0, 0, 0, 0))
    (found,) = segment_with_zoom(predictor, volume, [CLICK], 2.0).result.zooms
    assert (found.region, found.growths, found.looks, found.passes) == (Region(0, 0, 60, 40), 4, 4, (6,))


def test_slices_are_reported_with_their_region_and_the_last_report_is_the_result(
    volume: Volume, predictor: VolumePredictor
):
    shown = np.zeros(volume.array.shape, bool)

    def show(object_id: int, index: int, logits: RegionLogits) -> None:
        assert object_id == 3
        shown[index] = logits_on_slice(logits, 0, (60, 40)) > 0

    segmentation = ZoomedVolume(predictor, volume).segment([BOX], 10.0, show)
    np.testing.assert_array_equal(shown, segmentation.labels == 3)


def test_clicks_outside_of_the_object_neither_enlarge_the_region_nor_leave_it():
    prompt = VoxelPrompt(1, 2, ((30.0, 20.0), (2.0, 50.0), (33.0, 22.0)), (1, 0, 0))
    assert extent_of_prompts([prompt]) == (20, 30, 20, 30)
    inside = prompt_in_region(prompt, Region(10, 24, 20, 16))
    assert inside is not None and (inside.points, inside.labels) == (((6.0, 10.0), (9.0, 12.0)), (1, 0))
    assert prompt_in_region(VoxelPrompt(1, 2, ((2.0, 50.0),), (0,)), Region(10, 24, 20, 16)) is None


def test_boxes_and_masks_are_moved_into_the_region():
    mask = np.zeros((60, 40), bool)
    mask[12:15, 30:33] = True
    prompts = [VoxelPrompt(1, 2, box=(26.0, 14.0, 30.0, 18.0)), VoxelPrompt(1, 3, mask=mask)]
    assert extent_of_prompts(prompts) == (12, 26, 18, 32)
    box, drawn = (prompt_in_region(prompt, Region(10, 24, 20, 16)) for prompt in prompts)
    assert box is not None and box.box == (2.0, 4.0, 6.0, 8.0)
    assert drawn is not None and drawn.mask is not None and drawn.mask.shape == (20, 16)
    assert drawn.mask[2:5, 6:9].all() and drawn.mask.sum() == 9


def test_an_object_without_a_prompt_inside_is_segmented_on_whole_slices(volume: Volume, predictor: VolumePredictor):
    outside = VoxelPrompt(1, 2, ((30.0, 20.0),), (0,))
    (found,) = segment_with_zoom(predictor, volume, [outside], "auto").result.zooms
    assert found.region == Region(0, 0, 60, 40) and found.looks == 0


def test_looks_and_passes_are_counted_as_sessions(volume: Volume, predictor: VolumePredictor, still: None):
    result = segment_with_zoom(predictor, volume, [CLICK, BOX], "auto").result
    assert zoomed_sessions(result, [CLICK, BOX]) == [(1, [CLICK]), (6, [CLICK]), (6, [BOX])]
    assert zoomed_sessions(segment_volume(predictor, volume, [CLICK]).result, [CLICK]) == []


def test_features_of_a_region_are_freed_before_another_one_is_encoded(
    volume: Volume, predictor: VolumePredictor, monkeypatch: pytest.MonkeyPatch
):
    stores: list[weakref.ref[FeatureStore]] = []

    def open_one(slices: Slices, *rest: Progress | None) -> FeatureStore:
        if len(slices) == 6:
            assert not any(store() for store in stores)
        store = VolumePredictor.open(predictor, slices, *rest)
        if len(slices) == 6:
            stores.append(weakref.ref(store))
        return store

    monkeypatch.setattr(predictor, "open", open_one)
    monkeypatch.setattr(zoom, "touches_border", lambda mask, sides: any(sides))
    monkeypatch.setattr(zoom, "extent_of_mask", lambda mask: Extent(0, 0, 0, 0))
    zooms = segment_with_zoom(predictor, volume, [BOX], 30.0).result.zooms
    assert len(stores) == len(zooms[0].passes) > 1


def test_prompts_that_cannot_be_combined_are_refused_before_a_slice_is_encoded(
    volume: Volume, predictor: VolumePredictor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predictor, "open", lambda *_: pytest.fail("a region was opened"))
    with pytest.raises(UserError, match="there are two boxes"):
        segment_with_zoom(predictor, volume, [CLICK, BOX, BOX], "auto")
