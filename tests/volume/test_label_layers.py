"""Segments that overlap, are cropped, or are contours, read on the grid of an image from files of other programs."""

import numpy as np
import pydicom
import pytest

from sam2_3dmed_jax.volume.dicom_contours import fill
from sam2_3dmed_jax.volume.dicom_seg import write_dicom_seg
from sam2_3dmed_jax.volume.geometry import to_canonical
from sam2_3dmed_jax.volume.io import open_labels, read_label_layers, read_labels, read_volume, write_nifti
from tests.helpers.dicom_files import write_series
from tests.helpers.nifti_files import refusal
from tests.helpers.segment_files import (
    rectangle,
    write_segments_by_dcmqi,
    write_segments_by_highdicom,
    write_slicer_segments,
    write_structures,
)

SHAPE = (12, 10, 6)  # i, j, k


@pytest.fixture
def volume(tmp_path):
    array = np.random.default_rng(0).integers(-100, 100, SHAPE[::-1]).astype(np.int16)
    return read_volume(write_series(tmp_path / "ct", array=array))


@pytest.fixture
def masks():
    """An organ, a lesion inside of it, and an organ that touches neither."""
    result = np.zeros((3, *SHAPE), bool)
    result[0, 1:9, 2:8, 1:4] = True
    result[1, 3:5, 3:6, 2:4] = True
    result[2, 10:12, 0:2, 4:6] = True
    return result


def assert_holds(layers, masks, volume):
    for value, mask in enumerate(masks, 1):
        np.testing.assert_array_equal(layers.mask([value]), to_canonical(mask, volume.grid))


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_overlapping_segments_of_highdicom_are_each_whole(tmp_path, volume, masks, kind):
    path = write_segments_by_highdicom(tmp_path / "seg.dcm", tmp_path / "ct", masks, kind)
    assert_holds(read_label_layers(path, volume), masks, volume)
    assert open_labels(path).names == {n: f"segment {n}" for n in (1, 2, 3)}


def test_a_dicom_label_map_is_read_as_segments(tmp_path, volume, masks):
    path = write_segments_by_highdicom(tmp_path / "seg.dcm", tmp_path / "ct", masks, "LABELMAP")
    masks[0] &= ~masks[1]
    assert_holds(read_label_layers(path, volume), masks, volume)


def test_overlapping_segments_of_dcmqi_are_each_whole(tmp_path, volume, masks):
    path = write_segments_by_dcmqi(tmp_path, tmp_path / "ct", masks, volume.grid.affine)
    assert_holds(read_label_layers(path, volume), masks, volume)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, -0.6, 0.8, 0)])
def test_our_own_dicom_segmentation_reads_back_equal(tmp_path, orientation):
    volume = read_volume(write_series(tmp_path / "a", orientation=orientation))
    labels = np.random.default_rng(0).integers(0, 3, volume.array.shape)
    write_dicom_seg(tmp_path / "seg.dcm", labels, volume, {1: "liver"})
    np.testing.assert_array_equal(read_labels(tmp_path / "seg.dcm", volume), labels)
    (tmp_path / "series").mkdir()
    (tmp_path / "seg.dcm").rename(tmp_path / "series" / "1.dcm")
    np.testing.assert_array_equal(read_labels(tmp_path / "series", volume), labels)


def test_a_label_map_of_overlapping_segments_is_refused_with_the_segments(tmp_path, volume, masks):
    path = write_segments_by_highdicom(tmp_path / "seg.dcm", tmp_path / "ct", masks)
    assert "segments that overlap, 1 and 2 in 12 voxels" in refusal(read_labels, path, volume)


def test_a_dicom_segmentation_of_another_grid_is_refused_with_the_distance(tmp_path, volume, masks):
    path = write_segments_by_highdicom(tmp_path / "seg.dcm", tmp_path / "ct", masks)
    shifted = [np.array([-9.7, -20, 30 + 2.5 * k]) for k in range(6)]
    other = read_volume(write_series(tmp_path / "b", positions=shifted, array=np.zeros(SHAPE[::-1], np.int16)))
    assert "up to 0.3 mm away from the image's voxels" in refusal(read_label_layers, path, other)
    smaller = read_volume(write_series(tmp_path / "c", array=np.zeros((3, 10, 12), np.int16)))
    assert "has labels outside of" in refusal(read_label_layers, path, smaller)


def test_segments_of_slicer_in_several_layers_and_cropped_are_placed_on_the_image(tmp_path, volume, masks):
    affine = volume.grid.affine.copy()
    affine[:3, 3] = (affine @ [1, 0, 1, 1])[:3]
    layers = np.stack([masks[0], masks[1] + 2 * masks[2]])[:, 1:, :9, 1:].astype(np.uint8)
    segments = [(0, 1, "organ"), (1, 1, "lesion"), (1, 2, "other")]
    path = write_slicer_segments(tmp_path / "x.seg.nrrd", layers, affine, segments, (1, 0, 1))
    assert_holds(read_label_layers(path, volume), masks, volume)
    assert open_labels(path).names == {1: "organ", 2: "lesion", 3: "other"}


def test_one_layer_of_slicer_keeps_its_label_values(tmp_path, volume, masks):
    layers = (4 * masks[1] + 9 * masks[2]).astype(np.uint8)[None]
    path = write_slicer_segments(tmp_path / "x.seg.nrrd", layers, volume.grid.affine, [(0, 9, "a"), (0, 4, "b")])
    expected = to_canonical(layers[0], volume.grid)
    np.testing.assert_array_equal(read_labels(path, volume), expected)


def test_a_value_of_slicer_that_is_no_segment_is_refused(tmp_path, volume, masks):
    layers = masks[:1].astype(np.uint8) * 3
    path = write_slicer_segments(tmp_path / "x.seg.nrrd", layers, volume.grid.affine, [(0, 1, "a")])
    assert "value 3 in layer 0, which is not a segment" in refusal(read_label_layers, path, volume)


def test_contours_are_filled_with_their_holes_and_each_structure_is_whole(tmp_path, volume):
    affine = volume.grid.affine
    outer, hole = ((0.5, 1.5), (8.5, 7.5)), ((3.5, 3.5), (5.5, 5.5))
    ring = [rectangle(affine, *corners, k) for k in (1, 2) for corners in (outer, hole)]
    inner = [rectangle(affine, (2.6, 2.6), (6.4, 4.4), 2)]
    path = write_structures(tmp_path / "rt.dcm", {3: ring, 8: inner, 9: [[[0, 0, 0]]]})
    layers = read_label_layers(path, volume)
    expected = np.zeros((2, *SHAPE), bool)
    expected[0, 1:9, 2:8, 1:3] = True
    expected[0, 4:6, 4:6, 1:3] = False
    expected[1, 3:7, 3:5, 2] = True
    for value, mask in zip((3, 8), expected, strict=True):
        np.testing.assert_array_equal(layers.mask([value]), to_canonical(mask, volume.grid))
    assert open_labels(path).names == {3: "structure 3", 8: "structure 8"}


def test_contours_between_slices_belong_to_the_nearest_slice(tmp_path, volume):
    drawn = [rectangle(volume.grid.affine, (1.5, 1.5), (4.5, 4.5), k) for k in (1.3, 1.8, 2.4)]
    path = write_structures(tmp_path / "rt.dcm", {1: drawn})
    found = read_labels(path, volume)
    expected = np.zeros(SHAPE, np.int32)
    expected[2:5, 2:5, 1:3] = 1
    np.testing.assert_array_equal(found, to_canonical(expected, volume.grid))


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        ({1: [((1, 1), (4, 4), 0), ((1, 1), (4, 4), 3), ((1, 1), (4, 4), 5)]}, "contours on every 2.5 slices"),
        ({1: [((1, 1), (4, 4), 20)]}, r"structure 1 \(structure 1\) outside of"),
        ({0: [((1, 1), (4, 4), 2)]}, "the ROINumber 0"),
    ],
)
def test_contours_that_do_not_fit_the_image_are_refused(tmp_path, volume, structures, message):
    drawn = {n: [rectangle(volume.grid.affine, *each) for each in parts] for n, parts in structures.items()}
    write_structures(tmp_path / "rt.dcm", drawn)
    with pytest.raises(Exception, match=message):
        read_label_layers(tmp_path / "rt.dcm", volume)


def test_contours_across_the_slices_are_refused(tmp_path, volume):
    points = np.array([[0, 0, 40], [3, 0, 42], [0, 3, 36], [5, 5, 33]]) + [-10, -20, 0]
    path = write_structures(tmp_path / "rt.dcm", {1: [points]})
    assert "not parallel to the slices" in refusal(read_label_layers, path, volume)


def test_a_filled_polygon_holds_the_centres_inside_an_odd_number_of_its_edges():
    rng = np.random.default_rng(0)
    i, j = np.meshgrid(np.arange(24), np.arange(20), indexing="ij")
    for _ in range(50):
        polygon = rng.uniform(-5, 30, (rng.integers(3, 9), 2))
        inside = np.zeros(i.shape, bool)
        nearest = np.full(i.shape, np.inf)
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            crossing = x0 + (j - y0) * (x1 - x0) / (y1 - y0)
            crosses = (y0 <= j) != (y1 <= j)
            inside ^= crosses & (i > crossing)
            nearest = np.where(crosses, np.minimum(nearest, np.abs(i - crossing)), nearest)
        clear = nearest > 0.01  # centres on an edge are inside by another rule
        np.testing.assert_array_equal(fill((24, 20), [polygon])[clear], inside[clear])


def test_a_contour_traced_through_voxel_centres_includes_them():
    square = np.array([[2, 3], [6, 3], [6, 5], [2, 5]], float)
    expected = np.zeros((9, 8), bool)
    expected[2:7, 3:6] = True
    np.testing.assert_array_equal(fill((9, 8), [square]), expected)
    line = np.array([[1, 1], [5, 1]], float)  # a structure of one voxel's width is traced there and back
    assert fill((9, 8), [line]).sum() == 5


def test_a_damaged_segmentation_is_refused(tmp_path, volume, masks):
    path = write_segments_by_highdicom(tmp_path / "seg.dcm", tmp_path / "ct", masks)
    whole = pydicom.dcmread(path)
    del whole.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    whole.save_as(path)
    assert "frames without ImagePositionPatient" in refusal(read_label_layers, path, volume)


def test_labels_are_printed_with_all_their_digits(tmp_path, volume):
    data = np.full(SHAPE, 1234567.5, np.float32)
    write_nifti(tmp_path / "a.nii", data, volume.grid.affine)
    assert "holds the value 1234567.5," in refusal(read_labels, tmp_path / "a.nii", volume)
    write_nifti(tmp_path / "a.nii", np.full(SHAPE, 0.1, np.float32), volume.grid.affine)
    assert "holds the value 0.1," in refusal(read_labels, tmp_path / "a.nii", volume)
    write_nifti(tmp_path / "a.nii", np.full(SHAPE, 12345678912, np.float32), volume.grid.affine)
    assert "from 12345678848 to 12345678848" in refusal(read_labels, tmp_path / "a.nii", volume)
