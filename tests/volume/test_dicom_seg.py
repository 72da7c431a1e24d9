"""DICOM segmentations out, read back by dcmqi, which shares no code with what wrote them."""

import json
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pydicom
import pytest

from sam2_3dmed_jax.volume import dicom_seg
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.dicom_seg import prepare_dicom_seg, write_dicom_seg
from sam2_3dmed_jax.volume.geometry import from_canonical
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from tests.helpers.dicom_files import edit, write_multi_frame, write_series
from tests.helpers.nifti_files import make, real, refusal

OBLIQUE = tuple(np.linalg.qr([[1, 0.2], [0.1, 1], [0.3, -0.2]])[0].T.ravel() * np.repeat([-1, -1], 3))


def by_dcmqi(path, folder, like):
    """Label map `[D, H, W]` of segment numbers, and dcmqi's description of the segments."""
    folder.mkdir()
    command = [str(Path(sysconfig.get_path("scripts")) / "segimage2itkimage"), "--inputDICOM", str(path)]
    subprocess.run([*command, "--outputDirectory", str(folder), "-t", "nrrd"], check=True, capture_output=True)
    found = np.zeros(like.array.shape, np.int32)
    for file in folder.glob("*.nrrd"):
        # dcmqi spans the slices that hold something: place them by their positions.
        part = read_volume(file)
        inside = np.argwhere(part.array > 0)
        to_like = np.linalg.inv(like.canonical_affine) @ part.canonical_affine
        places = (to_like @ np.c_[inside, np.ones(len(inside))].T)[:3].T
        assert np.abs(places - np.rint(places)).max() < 1e-3  # the decimals that DICOM's text holds
        found[tuple(np.rint(places).astype(int).T)] = part.array[part.array > 0]
    return found, json.loads(next(folder.glob("*.json")).read_text())


def test_the_shared_liver_reads_back_equal(tmp_path):
    volume = read_volume(real("dicom/ct-3slice"))
    labels = (read_labels(real("dicom/liver_seg.nrrd"), volume) == 1).astype(np.int32)
    write_dicom_seg(tmp_path / "liver.dcm", labels, volume, {1: "liver"})
    found, meta = by_dcmqi(tmp_path / "liver.dcm", tmp_path / "back", volume)
    np.testing.assert_array_equal(found, labels)
    segment = meta["segmentAttributes"][0][0]
    assert segment["SegmentAlgorithmType"] == "SEMIAUTOMATIC"
    assert segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "10200004"
    assert "research use only" in meta["SeriesDescription"]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["liver.dcm"]


@pytest.mark.parametrize("kind", ["reversed", "oblique", "multi-frame"])
def test_several_labels_read_back_where_they_lie(tmp_path, kind):
    if kind == "multi-frame":
        path = write_multi_frame(tmp_path / "a.dcm", order=[2, 0, 3, 1])
    else:
        path = write_series(tmp_path / "a", orientation=OBLIQUE if kind == "oblique" else (1, 0, 0, 0, -1, 0))
    volume = read_volume(path)
    labels = np.random.default_rng(0).integers(0, 3, volume.array.shape) * 5
    names = {5: "kidney", 10: "kidney tumour"}
    write_dicom_seg(tmp_path / "seg.dcm", labels, volume, names)
    found, meta = by_dcmqi(tmp_path / "seg.dcm", tmp_path / "back", volume)
    np.testing.assert_array_equal(found, labels // 5)
    described = {item["labelID"]: item for group in meta["segmentAttributes"] for item in group}
    types = [described[number]["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] for number in (1, 2)]
    assert types == ["Kidney", "Neoplasm"]


def test_dcmqi_shows_the_names_codes_sides_and_colours_of_segments(tmp_path):
    volume = read_volume(write_series(tmp_path / "a"))
    labels = np.arange(volume.array.size).reshape(volume.array.shape) % 5
    names = {
        1: "kidney_left",
        2: "liver tumour",
        3: ObjectLabel("node 3", "59441001", "#1020f0"),
        4: "something",
    }
    write_dicom_seg(tmp_path / "seg.dcm", labels, volume, names)
    _, meta = by_dcmqi(tmp_path / "seg.dcm", tmp_path / "back", volume)
    kidney, tumour, node, other = sorted(
        (item for group in meta["segmentAttributes"] for item in group), key=lambda item: item["labelID"]
    )
    assert [item["SegmentLabel"] for item in (kidney, tumour, node, other)] == [
        "kidney_left",
        "liver tumour",
        "node 3",
        "something",
    ]

    def coded(item, what):
        return tuple(item[f"{what}CodeSequence"][key] for key in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))

    assert coded(kidney, "SegmentedPropertyCategory") == ("123037004", "SCT", "Anatomical Structure")
    assert coded(kidney, "SegmentedPropertyType") == ("64033007", "SCT", "Kidney")
    assert coded(kidney, "SegmentedPropertyTypeModifier") == ("7771000", "SCT", "Left")
    assert coded(tumour, "SegmentedPropertyCategory") == ("49755003", "SCT", "Morphologically Abnormal Structure")
    assert coded(tumour, "SegmentedPropertyType") == ("108369006", "SCT", "Neoplasm")
    assert tumour["AnatomicRegionSequence"]["CodeMeaning"] == "Liver"
    assert coded(node, "SegmentedPropertyType") == ("59441001", "SCT", "Lymph Node")
    assert coded(other, "SegmentedPropertyType") == ("85756007", "SCT", "Tissue")
    # 3D Slicer's colours of kidney and mass, and the given one; CIELab is stored with 16 bits, and dcmqi rounds.
    for item, color in ((kidney, (185, 102, 83)), (tumour, (144, 238, 144)), (node, (0x10, 0x20, 0xF0))):
        np.testing.assert_allclose(item["recommendedDisplayRGBValue"], color, atol=2)


def test_each_frame_refers_to_its_slice(tmp_path):
    volume = read_volume(write_series(tmp_path / "a"))
    labels = np.zeros(volume.array.shape, bool)
    labels[2, 1, 3] = True
    write_dicom_seg(tmp_path / "seg.dcm", labels, volume, {1: "nodule"})
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    slice_file = pydicom.dcmread(tmp_path / "a" / "02.dcm")  # named against the order in space
    assert seg.NumberOfFrames == 1
    source = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == slice_file.SOPInstanceUID
    np.testing.assert_array_equal(
        np.argwhere(seg.pixel_array), np.argwhere(from_canonical(labels, volume.grid)[..., 2].T)
    )


def test_an_unknown_name_becomes_tissue_and_a_missing_name_a_number(tmp_path):
    volume = read_volume(write_series(tmp_path / "a"))
    labels = np.arange(volume.array.size).reshape(volume.array.shape) % 3
    write_dicom_seg(tmp_path / "seg.dcm", labels, volume, {1: "Größe\\xyz" + "a" * 80})
    first, second = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert first.SegmentLabel.startswith("Gr??e/xyz")
    assert len(first.SegmentLabel) == 64
    assert second.SegmentLabel == "label 2"


def test_only_the_patient_tags_that_the_standard_requires_are_copied(tmp_path):
    secrets = {
        "PatientAddress": "1 Secret Street",
        "OtherPatientIDs": "SECRET-ID",
        "PatientComments": "secret comment",
        "InstitutionName": "Secret Hospital",
        "StudyDescription": "secret study",
        "PatientAge": "050Y",
        "OperatorsName": "Secret^Operator",
        "StationName": "SECRET",
        "DeviceSerialNumber": "secret serial",
    }
    volume = read_volume(write_series(tmp_path / "a", **secrets))
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(volume.array.shape, int), volume, {1: "lung"})
    assert b"secret" not in (tmp_path / "seg.dcm").read_bytes().lower()
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.PatientID == "MRN-4711"
    assert "PatientAge" not in seg


def test_tags_that_are_missing_from_the_source_are_empty(tmp_path):
    write_series(tmp_path / "a", PatientName=None, StudyID=None, AccessionNumber="", SpecificCharacterSet="")
    volume = read_volume(tmp_path / "a")
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(volume.array.shape, int), volume, {1: "lung"})
    assert not pydicom.dcmread(tmp_path / "seg.dcm").PatientName


STUDY = ("StudyID", "StudyDate", "StudyTime", "AccessionNumber")
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")


@pytest.mark.parametrize(
    "tags",
    [
        {"SliceThickness": None},
        {"SliceThickness": ""},
        {"FrameOfReferenceUID": None},
        {"StudyInstanceUID": None},
        {"StudyInstanceUID": "1.2.3.4.05"},
        dict.fromkeys(STUDY),
        dict.fromkeys(PATIENT),
        {"PatientAge": "61", "PatientBirthDate": "1963-01-02", "StudyDate": "2020.01.01", "StudyTime": "12:30"},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Jürgen", "StudyID": "Bäuch"},
        {"SeriesNumber": -7, "PatientSex": "male", "AccessionNumber": "1" * 40},
    ],
    ids=lambda tags: ",".join(tags),
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@pytest.mark.parametrize("multi_frame", [False, True])
def test_a_series_with_missing_or_malformed_tags_gets_a_segmentation_that_dcmqi_reads(tmp_path, tags, multi_frame):
    if multi_frame:
        path = write_multi_frame(tmp_path / "a.dcm")
        edit(path, **{tag: value for tag, value in tags.items() if tag != "SliceThickness"})
        if "SliceThickness" in tags:
            whole = pydicom.dcmread(path)
            del whole.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
            whole.save_as(path)
    else:
        path = write_series(tmp_path / "a", **tags)
    volume = read_volume(path)
    labels = np.random.default_rng(0).integers(0, 3, volume.array.shape)
    out = tmp_path / "seg.dcm"
    write_dicom_seg(out, labels, volume, {}, prepare_dicom_seg(out, volume, {1: "liver", 2: "tumour"}))
    found, _ = by_dcmqi(out, tmp_path / "back", volume)
    np.testing.assert_array_equal(found, labels)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_dates_with_separators_are_rewritten_and_other_malformed_values_are_left_empty(tmp_path):
    tags = {"PatientBirthDate": "1963-01-02", "StudyDate": "2020.01.01", "StudyTime": "12:30:15", "PatientSex": "m"}
    volume = read_volume(write_series(tmp_path / "a", **tags))
    source = prepare_dicom_seg(tmp_path / "seg.dcm", volume)
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(volume.array.shape, int), volume, {}, source)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    found = [seg.PatientBirthDate, seg.StudyDate, seg.StudyTime, seg.PatientSex or ""]
    assert found == ["19630102", "20200101", "123015", ""]
    assert source.notes == ("PatientSex is malformed and is left empty",)


def test_a_missing_slice_thickness_is_the_distance_of_the_slices(tmp_path):
    volume = read_volume(write_series(tmp_path / "a", SliceThickness=None))
    source = prepare_dicom_seg(tmp_path / "seg.dcm", volume)
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(volume.array.shape, int), volume, {}, source)
    measures = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == 2.5
    assert source.notes == ("SliceThickness is missing: 2.5 mm, the distance of the slices, is used",)


def test_a_missing_frame_of_reference_gets_one_uid_per_series(tmp_path):
    volume = read_volume(write_series(tmp_path / "a", FrameOfReferenceUID=None))
    uids = set()
    for name in ("b.dcm", "c.dcm"):
        source = prepare_dicom_seg(tmp_path / name, volume)
        write_dicom_seg(tmp_path / name, np.ones(volume.array.shape, int), volume, {}, source)
        uids.add(pydicom.dcmread(tmp_path / name).FrameOfReferenceUID)
        assert "FrameOfReferenceUID is missing" in source.notes[0]
    assert len(uids) == 1 and uids.pop().is_valid


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_identifiers_that_cannot_be_kept_are_refused_in_preparation(tmp_path):
    volume = read_volume(write_series(tmp_path / "a", StudyInstanceUID="study 1"))
    message = refusal(prepare_dicom_seg, tmp_path / "seg.dcm", volume)
    assert "StudyInstanceUID 'study 1', which is not a UID" in message
    volume = read_volume(write_series(tmp_path / "b", each={2: {"FrameOfReferenceUID": "1.2.3"}}))
    message = refusal(prepare_dicom_seg, tmp_path / "seg.dcm", volume)
    assert "2 different values of FrameOfReferenceUID" in message


def test_what_highdicom_refuses_is_refused_in_preparation(tmp_path, monkeypatch):
    volume = read_volume(write_series(tmp_path / "a"))
    monkeypatch.setattr(dicom_seg, "_segmentation", lambda *_: {}["a new demand"])
    message = refusal(prepare_dicom_seg, tmp_path / "seg.dcm", volume)
    assert "cannot be made from" in message and "('a new demand')" in message and "write NIfTI" in message


def test_a_segmentation_beside_its_series_does_not_disturb_it(tmp_path):
    volume = read_volume(write_series(tmp_path))
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(volume.array.shape, int), volume, {1: "lung"})
    np.testing.assert_array_equal(read_volume(tmp_path).array, volume.array)
    assert "Segmentation Storage" in refusal(read_volume, tmp_path / "seg.dcm")


def test_labels_that_do_not_fit_the_series_are_refused(tmp_path):
    volume = read_volume(write_series(tmp_path / "a"))
    ones = np.ones(volume.array.shape, int)
    out = tmp_path / "seg.dcm"
    assert "expected .dcm" in refusal(write_dicom_seg, tmp_path / "seg.nii", ones, volume, {})
    assert "write NIfTI" in refusal(write_dicom_seg, out, 0 * ones, volume, {})
    assert "is a file of the image, which would be replaced" in refusal(
        write_dicom_seg, tmp_path / "a" / "01.dcm", ones, volume, {}
    )
    other = read_volume(make(tmp_path / "ct.nii"))
    assert "needs a DICOM series" in refusal(write_dicom_seg, out, np.ones(other.array.shape, int), other, {})
    edit(tmp_path / "a" / "01.dcm", ImagePositionPatient=[-10, -20, 40])
    assert "write NIfTI" in refusal(write_dicom_seg, out, ones, volume, {})
    resampled = read_volume(tmp_path / "a", resample=True)
    message = refusal(write_dicom_seg, out, np.ones(resampled.array.shape, int), resampled, {})
    assert "resampled" in message
    assert "write NIfTI" in message
    assert not out.exists()


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    volume = read_volume(write_series(tmp_path / "a"))
    whole = dicom_seg._segmentation

    def half(*arguments):
        dataset = whole(*arguments)

        def save_as(part):
            Path(part).write_bytes(b"half")
            raise OSError("disk full")

        object.__setattr__(dataset, "save_as", save_as)
        return dataset

    monkeypatch.setattr(dicom_seg, "_segmentation", half)
    message = refusal(write_dicom_seg, tmp_path / "out" / "seg.dcm", np.ones(volume.array.shape, int), volume, {})
    assert "cannot be written" in message
    assert not (tmp_path / "out").exists()  # the folder that the write created is removed too
