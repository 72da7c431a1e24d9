"""Sessions of `Scan`: prompts in the image's coordinates, undo, cancellation, callbacks and saved files."""

import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import Scan, VolumePredictor, new_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.inference import feature_store, zoom
from sam2_3dmed_jax.inference.predictor import Session
from sam2_3dmed_jax.inference.zoom import segment_with_zoom
from sam2_3dmed_jax.pictures.colours import COLOURS
from sam2_3dmed_jax.volume.geometry import from_canonical
from tests.helpers.dicom_files import write_series
from tests.helpers.scans import AFFINE, SHAPE, scan_array

# Masks of random weights have all signs of wrong masks.
pytestmark = pytest.mark.filterwarnings("ignore::sam2_3dmed_jax.errors.FileWarning")
# (superior to inferior, right to left, anterior to posterior)
INSIDE, OUTSIDE, OTHER = (5, 9, 12), (5, 16, 3), (2, 4, 17)


@pytest.fixture
def scan(image: Path, predictor: VolumePredictor) -> Scan:
    return Scan(image, predictor)


def no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "encode_block", lambda *_: pytest.fail("a slice was encoded again"))


def test_masks_depend_on_the_prompts_and_not_on_what_was_computed_before_the_last_one(scan, image, predictor):
    scan.click(OTHER, object=2)
    scan.preview()
    scan.propagate()
    scan.click(INSIDE)
    scan.preview()
    scan.mask()
    scan.click(OUTSIDE, inside=False)
    at_once = Scan(image, predictor)
    at_once.click(INSIDE)
    at_once.click(OUTSIDE, inside=False)
    at_once.click(OTHER, object=2)
    assert set(np.unique(scan.mask())) == {0, 1, 2}
    np.testing.assert_array_equal(scan.mask(), at_once.mask())


def test_a_change_propagates_the_objects_that_it_concerns_and_no_other(scan, image, predictor, monkeypatch):
    scan.click(INSIDE)
    scan.click(OTHER, object=2)
    scan.click(OUTSIDE, object=3)
    scan.mask()
    propagated, add = [], Session.add

    def recorded(session, prompts):
        propagated.append({prompt.object_id for prompt in prompts})
        add(session, prompts)

    monkeypatch.setattr(Session, "add", recorded)
    reported = []
    scan.click(OUTSIDE, inside=False, object=2)
    scan.propagate(lambda object_id, index, mask: reported.append((object_id, index)))
    assert propagated == [{2}]
    assert reported[0][0] == 2 and len(reported) == len(set(reported)) == 3 * scan.shape[scan.slice_axis]
    monkeypatch.setattr(Session, "add", add)
    at_once = Scan(image, predictor)
    at_once.click(INSIDE)
    at_once.click(OTHER, object=2)
    at_once.click(OUTSIDE, inside=False, object=2)
    at_once.click(OUTSIDE, object=3)
    for object_id in (1, 2, 3):
        np.testing.assert_array_equal(scan.mask(object_id), at_once.mask(object_id))
    scan.clear(3)
    monkeypatch.setattr(Session, "add", lambda *_: pytest.fail("an object was propagated again"))
    assert set(np.unique(scan.mask())) == {0, 1, 2}


def test_undo_and_redo_restore_masks_and_encode_no_slice_again(scan, monkeypatch):
    scan.click(INSIDE)
    first = scan.mask()
    no_encoding(monkeypatch)
    scan.click(OUTSIDE, inside=False)
    second = scan.mask()
    assert (first != second).any()
    assert scan.undo()
    np.testing.assert_array_equal(scan.mask(), first)
    assert scan.redo() and not scan.redo()
    np.testing.assert_array_equal(scan.mask(), second)
    assert scan.undo() and scan.undo() and not scan.undo()
    with pytest.raises(UserError, match="no prompts"):
        scan.mask()


def test_a_new_prompt_drops_what_was_undone(scan):
    scan.click(INSIDE)
    scan.undo()
    scan.click(OTHER)
    assert not scan.redo()
    assert scan.preview().slice == OTHER[0]


def test_cleared_prompts_come_back_by_undo(scan):
    scan.click(INSIDE)
    scan.click(OTHER, object=2)
    both = scan.mask()
    scan.clear(2)
    assert not scan.mask(2).any() and set(np.unique(scan.mask())) == {0, 1}
    scan.undo()
    np.testing.assert_array_equal(scan.mask(), both)


@pytest.mark.parametrize("order", ["sequential", "independent"])
def test_callbacks_give_each_slice_of_each_object_once_with_its_final_mask(image, predictor, order):
    scan = Scan(image, predictor.model, order=order)
    scan.click(INSIDE)
    scan.click((8, 10, 10))
    scan.click(OTHER, object=2)
    slices = {}

    def on_slice(object_id, index, mask):
        assert (object_id, index) not in slices
        slices[object_id, index] = mask

    assert scan.propagate(on_slice)
    assert len(slices) == 2 * SHAPE[scan.slice_axis]
    for number in (1, 2):
        drawn = np.stack([slices[number, index] for index in range(SHAPE[0])], scan.slice_axis)
        np.testing.assert_array_equal(drawn, scan.mask(number))
    seen = dict(slices)
    slices.clear()
    assert scan.propagate(on_slice)  # a second call computes nothing, and reports the same masks
    assert slices.keys() == seen.keys() and all((slices[key] == seen[key]).all() for key in seen)


def test_slices_arrive_outward_from_the_click(scan):
    scan.click(INSIDE)
    order = []
    scan.propagate(lambda object_id, index, mask: order.append(index))
    assert order == [5, 4, 3, 2, 1, 0, *range(6, SHAPE[0])]  # index 0 is superior


def test_a_cancelled_propagation_changes_no_later_result(scan, image, predictor):
    cancel, seen = threading.Event(), []

    def stop_after_three(object_id, index, mask):
        seen.append(index)
        if len(seen) == 3:
            cancel.set()

    scan.click(INSIDE)
    assert not scan.propagate(stop_after_three, cancel)
    assert len(seen) == 3
    scan.click(OUTSIDE, inside=False)
    other = Scan(image, predictor)
    other.click(INSIDE)
    other.click(OUTSIDE, inside=False)
    np.testing.assert_array_equal(scan.mask(), other.mask())


def test_encoding_starts_at_the_given_slice_stops_when_cancelled_and_resumes(image, predictor, monkeypatch):
    encoded = []
    encode_block = feature_store.encode_block
    monkeypatch.setattr(feature_store, "slices_per_encoding", lambda size: 2)
    monkeypatch.setattr(
        feature_store, "encode_block", lambda *arguments: encoded.append(arguments[2]) or encode_block(*arguments)
    )
    cancel = threading.Event()
    scan = Scan(image, predictor, progress=lambda what, done, total, note="": done >= 4 and cancel.set())
    assert not scan.encode(near=4, cancel=cancel)
    canonical = SHAPE[0] - 1 - 4  # the file counts from superior to inferior
    first = scan._store._slices.block(slice(canonical // 2 * 2, canonical // 2 * 2 + 2))
    assert len(encoded) == 2 and np.array_equal(encoded[0], first)
    assert scan.encode()
    assert len(encoded) == SHAPE[0] // 2


def test_freed_features_are_encoded_again_and_give_the_same_mask(scan):
    scan.click(INSIDE)
    before = scan.preview()
    scan.free_features()
    np.testing.assert_array_equal(scan.preview().mask, before.mask)


def test_a_preview_needs_the_clicked_slice_only_and_shows_its_mask(image, predictor, monkeypatch):
    calls = []
    encode_block = feature_store.encode_block
    monkeypatch.setattr(feature_store, "slices_per_encoding", lambda size: 2)
    monkeypatch.setattr(feature_store, "encode_block", lambda *arguments: calls.append(0) or encode_block(*arguments))
    scan = Scan(image, predictor)
    scan.click(INSIDE)
    object_id, index, mask = scan.preview()
    assert (object_id, index, len(calls)) == (1, INSIDE[0], 1)
    np.testing.assert_array_equal(mask, scan.mask(1)[INSIDE[0]])


def test_a_drawn_mask_and_a_box_replace_earlier_ones_on_their_slices(scan):
    drawn = np.zeros(SHAPE, bool)
    drawn[5, 4:20, 6:20] = True
    scan.click(INSIDE)
    scan.draw(drawn)
    overlap = scan.mask(1)[5] & drawn[5]
    # The mask is resampled to S / 4 = 16 cells, so its border moves by about a voxel.
    assert 2 * overlap.sum() / (scan.mask(1)[5].sum() + drawn[5].sum()) > 0.7
    with pytest.raises(UserError, match="a mask excludes other prompts"):
        scan.click(INSIDE)
    scan.box((3, 4, 6), (4, 19, 19), object=2)
    scan.box((4, 4, 6), (4, 10, 19), object=2)
    boxes = {prompt.slice: prompt.box for prompt in scan._history.current.prompts if prompt.object_id == 2}
    heights = {SHAPE[0] - 1 - index: box[2] - box[0] for index, box in boxes.items()}
    assert heights == {3: 15.0, 4: 6.0}


def test_a_model_that_was_never_trained_is_a_warning(image):
    with pytest.warns(FileWarning, match="never trained"):
        Scan(image, new_model("nano", 64))


def test_scribbles_become_clicks_inside_and_outside(scan):
    inside, outside = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    inside[5, 5:12, 12], outside[5, 16, 3:9] = 1, 1
    scan.scribble(inside, outside, object=3)
    (prompt,) = scan._history.current.prompts
    assert (prompt.object_id, prompt.labels.count(1), prompt.labels.count(0)) == (3, 7, 6)


def test_objects_are_addressed_by_name_and_have_the_colour_of_their_organ_or_of_the_palette(scan):
    scan.name_object(1, "spleen")
    scan.name_object(2, "odd", color="#0102ff")
    scan.click(INSIDE, object="spleen")
    scan.click(OTHER, object="odd")
    np.testing.assert_array_equal(scan.mask("odd"), scan.mask(2))
    scan.click((9, 9, 9), object=7)
    assert [label.name for label in scan.objects.values()] == ["spleen", "odd", "object 7"]
    assert scan.objects[1].color == "#9d6ca2"  # of 3D Slicer's "General Anatomy" terminology
    assert scan.objects[2].color == "#0102ff" and scan.objects[7].color == COLOURS[0]  # of the second round of six


def test_volumes_are_voxels_of_the_label_map_in_millilitres(scan):
    scan.click(INSIDE)
    scan.click(OTHER, object=2)
    voxel_ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    for number, volume in scan.volumes_ml().items():
        assert volume == pytest.approx((scan.mask() == number).sum() * voxel_ml)


def test_a_saved_segmentation_is_the_file_of_predict_with_its_record(image, predictor, tmp_path):
    from sam2_3dmed_jax import save_model

    save_model(predictor.model, tmp_path / "checkpoint")
    scan = Scan(image, tmp_path / "checkpoint")
    scan.click(INSIDE)
    scan.click(OUTSIDE, inside=False)
    scan.click(OTHER, object=2)
    scan.save(tmp_path / "out" / "ours.nii.gz")
    points = [",".join(map(str, place)) for place in ((*INSIDE, 1, 1), (*OUTSIDE, 0, 1), (*OTHER, 1, 2))]
    words = ["predict", tmp_path / "checkpoint", image, "--out", tmp_path / "out" / "theirs.nii.gz"]
    assert main([*map(str, words), *(word for point in points for word in ("--point", point))]) == 0
    ours, theirs = (nib.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("ours", "theirs"))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert ours.header == theirs.header
    records = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("ours", "theirs")]
    for record in records:
        del record["time"]
    assert records[0] == records[1]


def test_a_scan_of_a_dicom_series_is_saved_as_dicom_seg_with_its_names(tmp_path, predictor):
    highdicom = pytest.importorskip("highdicom")
    series = tmp_path / "series"
    write_series(series)
    scan = Scan(series, predictor)
    scan.name_object(1, "liver")
    scan.click(tuple(length // 2 for length in scan.shape), object="liver")
    scan.save(tmp_path / "seg.dcm")
    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert segmentation.get_segment_description(1).segment_label == "liver"


def test_a_name_of_no_segmentation_and_the_image_itself_are_refused_before_the_model_runs(scan, image):
    scan.click(INSIDE)
    with pytest.raises(UserError, match="is not the name of a segmentation"):
        scan.save("seg.png")
    with pytest.raises(UserError, match="is the image itself"):
        scan.save(image)
    with pytest.raises(UserError, match="needs a DICOM series"):
        scan.save("seg.dcm")
    assert not scan._finished


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scan: scan.mask(), "no prompts"),
        (lambda scan: scan.preview(), "no prompts"),
        (lambda scan: scan.propagate(), "no prompts"),
        (lambda scan: scan.save("seg.nii.gz"), "no prompts"),
        (lambda scan: scan.encode(near=14), "near: slice 14 does not exist"),
        (lambda scan: scan.mask(3), "'3' does not exist; objects are none yet"),
        (lambda scan: scan.clear("liver"), "'liver' does not exist"),
        (lambda scan: scan.click(INSIDE, object="liver"), "'liver' does not exist"),
        (lambda scan: scan.click(INSIDE, object=0), "0 is not an object id"),
        (lambda scan: scan.click(INSIDE, object=None), "'None' does not exist"),
        (lambda scan: scan.click((50, 9, 12)), r"click: voxel x = 50 is outside .*ct\.nii\.gz"),
        (lambda scan: scan.click((1e4, 0, 0), mm=True), "click: voxel"),
        (lambda scan: scan.click((1, 2)), r"click: \(1, 2\) is not a place"),
        (lambda scan: scan.click(7), "click: 7 is not a place"),
        (lambda scan: scan.box((0, 0, 0), (99, 9, 9)), "box: voxel x = 99 is outside"),
        (lambda scan: scan.draw(np.zeros(SHAPE, bool)), "mask: the mask is empty"),
        (lambda scan: scan.draw(np.ones((2, 2, 2), bool)), r"mask: an array of shape \(2, 2, 2\)"),
        (lambda scan: scan.draw(np.full(SHAPE, 0.5)), "integer labels"),
        (lambda scan: scan.name_object(1, "../up"), "is not a name"),
        (lambda scan: scan.name_object(1, "liver", color="red"), "is not a colour"),
    ],
)
def test_a_mistake_is_reported_and_changes_nothing(scan, call, message):
    with pytest.raises(UserError, match=message):
        call(scan)
    assert not scan.undo() and not scan.objects


@pytest.fixture
def zoomed(predictor: VolumePredictor, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """A click in slices of 264 x 312 mm, of which a region of 64 mm has 5 x 5 voxels; the last axis is theirs."""
    # Masks of random weights touch every border, and regions would grow to the whole slice.
    monkeypatch.setattr(zoom, "touches_border", lambda *_: False)
    array = np.moveaxis(scan_array(), 0, 2)
    scan = Scan(array, predictor, affine=np.diag([12.0, 12.0, 3.0, 1.0]), zoom="auto")
    scan.click((9, 12, 5))
    return scan


def test_a_zoomed_scan_has_the_masks_of_the_zoomed_volume(zoomed, predictor):
    expected = segment_with_zoom(predictor, zoomed.volume, zoomed.prompts, "auto")
    np.testing.assert_array_equal(zoomed.mask(), from_canonical(expected.labels, zoomed.volume.grid))
    np.testing.assert_array_equal(zoomed.mask(1), from_canonical(expected.object_mask(1), zoomed.volume.grid))
    record = zoomed.record()
    assert record["zoom"] == "auto" and record["objects"][0]["zoom"]["side_mm"] == expected.result.zooms[0].side_mm


def test_slices_of_a_zoomed_scan_add_up_to_its_masks_also_when_they_are_known(zoomed):
    shown = np.zeros((2, *zoomed.shape), bool)
    for repeat in shown:
        assert zoomed.propagate(lambda _, index, mask, repeat=repeat: np.copyto(repeat[..., index], mask))
        np.testing.assert_array_equal(repeat, zoomed.mask(1))
    preview = zoomed.preview()
    assert preview.slice == 5 and preview.mask.shape == zoomed.shape[:2]


def test_zooming_in_and_out_changes_the_masks_and_frees_features(zoomed):
    inside = zoomed.mask()
    zoomed.set_zoom("off")
    assert zoomed.zoom == "off" and (whole := zoomed.mask()).any() and (whole != inside).any()
    zoomed.set_zoom("auto")
    assert "_store" not in zoomed.__dict__
    np.testing.assert_array_equal(zoomed.mask(), inside)
    assert zoomed.encode()  # nothing is encoded before prompts are known
    with pytest.raises(UserError, match="zoom is 'near', expected auto, off, or"):
        zoomed.set_zoom("near")


def test_a_zoomed_scan_can_be_cancelled_and_resumed(zoomed, predictor):
    class Later:
        count = 0

        def is_set(self) -> bool:
            self.count += 1
            return self.count > 3

    assert not zoomed.propagate(cancel=Later())
    once = zoomed.mask()
    again = Scan(np.moveaxis(scan_array(), 0, 2), predictor, affine=zoomed.affine)
    again.set_zoom("auto")
    again.click((9, 12, 5))
    np.testing.assert_array_equal(again.mask(), once)
