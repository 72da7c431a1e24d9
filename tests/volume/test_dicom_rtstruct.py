"""Structure sets out, read back by our reader, and by pydicom and matplotlib, which share no code with the writer."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.dicom_rtstruct import outlines
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS, from_canonical
from sam2_3dmed_jax.volume.io import (
    prepare_segmentation,
    read_label_layers,
    read_labels,
    read_volume,
    write_segmentation,
)
from tests.helpers.dicom_files import write_multi_frame, write_series
from tests.helpers.nifti_files import make, real, refusal

OBLIQUE = tuple(np.linalg.qr([[1, 0.2], [0.1, 1], [0.3, -0.2]])[0].T.ravel() * np.repeat([-1, -1], 3))
SHAPE = (5, 24, 30)


def labels_with_holes():
    """Label 4: rings with two holes each, single voxels and diagonal neighbours. Label 2: an island in a hole."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2:22, 3:20] = 4
    labels[1:4, 5:9, 5:10] = labels[1:4, 12:19, 8:17] = 0
    labels[2, 14:17, 11:14] = 2
    labels[0, 0, 0] = labels[0, 10, 29] = labels[0, 11, 28] = labels[4, 23, 29] = 4
    return labels


@pytest.fixture(scope="module", params=["axial", "descending", "oblique", "multi-frame"])
def written(request, tmp_path_factory):
    """A series, its structure set with labels 2, 4 and the empty 7, and the labels."""
    folder = tmp_path_factory.mktemp(request.param)
    array = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    if request.param == "multi-frame":
        series = write_multi_frame(folder / "a.dcm", array, order=[2, 0, 3, 1, 4])
    else:
        axes = {"axial": (1, 0, 0, 0, 1, 0), "descending": (1, 0, 0, 0, -1, 0), "oblique": OBLIQUE}[request.param]
        series = write_series(folder / "a", array=array, orientation=axes)
    volume, path = read_volume(series), folder / "seg.rtstruct.dcm"
    names = {2: "liver tumour", 4: ObjectLabel("left kidney", color="#112233"), 7: "nothing"}
    labels = labels_with_holes()
    write_segmentation(path, labels, volume, names, prepare_segmentation(path, volume, names))
    return volume, path, labels


def by_matplotlib(path, volume, number):
    """Fill the contours of a structure: even-odd, a voxel is inside where its centre is."""
    i, j, depth = volume.grid.shape
    centres = np.stack(np.meshgrid(np.arange(i), np.arange(j), indexing="ij"), -1).reshape(-1, 2)
    to_voxel = np.linalg.inv(volume.grid.affine) @ LPS_TO_RAS
    mask = np.zeros(volume.grid.shape, bool)
    for structure in pydicom.dcmread(path).ROIContourSequence:
        for contour in structure.ContourSequence if structure.ReferencedROINumber == number else ():
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            k = round(voxels[:, 2].mean())
            assert 0 <= k < depth and np.abs(voxels[:, 2] - k).max() < 1e-3
            mask[..., k] ^= Polygon(voxels[:, :2]).contains_points(centres).reshape(i, j)
    return mask


def test_every_voxel_is_read_back_by_our_reader(written):
    volume, path, labels = written
    back = read_label_layers(path, volume)
    for value in (2, 4, 7):
        np.testing.assert_array_equal(back.mask([value]), labels == value)


def test_every_voxel_is_read_back_by_matplotlib(written):
    volume, path, labels = written
    for value in (2, 4):
        np.testing.assert_array_equal(
            by_matplotlib(path, volume, value), from_canonical((labels == value).astype(np.uint8), volume.grid) == 1
        )


def test_each_contour_refers_to_the_image_of_its_slice(written):
    volume, path, _ = written
    source = Path(volume.grid.source)
    images = [pydicom.dcmread(file) for file in ([source] if source.is_file() else source.iterdir())]
    positions = {}
    for image in images:
        frames = image.get("PerFrameFunctionalGroupsSequence")
        for number, frame in enumerate(frames or [image], 1):
            place = frame.PlanePositionSequence[0] if frames else frame
            key = image.SOPInstanceUID, number if frames else None
            positions[key] = np.array(place.ImagePositionPatient, float)
    normal = LPS_TO_RAS[:3, :3] @ volume.grid.affine[:3, 2]
    for structure in pydicom.dcmread(path).ROIContourSequence:
        for contour in structure.ContourSequence:
            (image,) = contour.ContourImageSequence
            origin = positions[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
            distance = (np.array(contour.ContourData, float).reshape(-1, 3) - origin) @ normal
            assert np.abs(distance).max() < 1e-3


def test_structures_have_names_codes_and_colours_and_an_empty_one_has_no_contours(written):
    _, path, _ = written
    header = pydicom.dcmread(path)
    assert [(item.ROINumber, item.ROIName) for item in header.StructureSetROISequence] == [
        (2, "liver tumour"),
        (4, "left kidney"),
        (7, "nothing"),
    ]
    codes = [item.RTROIIdentificationCodeSequence[0].CodeMeaning for item in header.RTROIObservationsSequence]
    assert codes == ["Neoplasm", "Kidney", "Tissue"]
    drawn = {item.ReferencedROINumber: item for item in header.ROIContourSequence}
    assert list(drawn[4].ROIDisplayColor) == [0x11, 0x22, 0x33] and list(drawn[2].ROIDisplayColor) == [144, 238, 144]
    assert "ROIDisplayColor" not in drawn[7] and not drawn[7].ContourSequence
    assert header.ApprovalStatus == "UNAPPROVED" and "research use only" in header.SeriesDescription


def test_contours_of_a_disc_are_within_half_a_pixel_of_its_edge_and_have_its_area():
    i, j = np.indices((80, 70))
    (contour,) = outlines(np.hypot(i - 40, j - 33) <= 25)
    assert np.abs(np.hypot(*(contour - (40, 33)).T) - 25).max() <= 0.5
    x, y = contour.T
    area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    assert area == pytest.approx(np.pi * 25**2, rel=0.01)  # Gauss's circle problem: 1961 pixels, 1963.5


def test_the_shared_liver_is_read_back_by_both(tmp_path):
    volume = read_volume(real("dicom/ct-3slice"))
    labels = (read_labels(real("dicom/liver_seg.nrrd"), volume) == 1).astype(np.uint8)
    write_segmentation(tmp_path / "liver.rtstruct.dcm", labels, volume, {1: "liver"})
    np.testing.assert_array_equal(read_labels(tmp_path / "liver.rtstruct.dcm", volume), labels)
    stored = from_canonical(labels, volume.grid) == 1
    np.testing.assert_array_equal(by_matplotlib(tmp_path / "liver.rtstruct.dcm", volume, 1), stored)


def test_a_structure_set_without_any_voxel_is_an_empty_label_map(tmp_path):
    volume = read_volume(write_series(tmp_path / "a"))
    write_segmentation(tmp_path / "seg.rtstruct.dcm", np.zeros(volume.array.shape, int), volume, {1: "spleen"})
    assert not read_labels(tmp_path / "seg.rtstruct.dcm", volume).any()


def test_only_the_patient_tags_that_the_standard_requires_are_copied(tmp_path):
    secrets = {"PatientAddress": "1 Secret Street", "InstitutionName": "Secret Hospital", "OperatorsName": "Secret^Op"}
    volume = read_volume(write_series(tmp_path / "a", **secrets))
    write_segmentation(tmp_path / "seg.rtstruct.dcm", np.ones(volume.array.shape, int), volume, {1: "lung"})
    assert b"secret" not in (tmp_path / "seg.rtstruct.dcm").read_bytes().lower()
    assert pydicom.dcmread(tmp_path / "seg.rtstruct.dcm").PatientID == "MRN-4711"


def test_an_image_that_is_not_dicom_is_refused_before_the_work(tmp_path):
    volume = read_volume(make(tmp_path / "a.nii.gz"))
    message = refusal(prepare_segmentation, tmp_path / "seg.rtstruct.dcm", volume, {1: "spleen"})
    assert "needs a DICOM series as its source" in message
