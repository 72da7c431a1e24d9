"""DICOM that cannot be used: one line that names the file and the tag, before any voxel is allocated."""

import sys

import numpy as np
import pydicom
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.dicom_pixels import PixelDecoder
from sam2_3dmed_jax.volume.image_file import LIMIT_VARIABLE
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from tests.helpers.dicom_files import edit, ramp, write_multi_frame, write_series
from tests.helpers.nifti_files import make, refusal


@pytest.mark.parametrize(
    "tag",
    [
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated"),
        *("SeriesInstanceUID", "SOPInstanceUID", "RescaleSlope", "RescaleIntercept", "Modality"),
    ],
)
def test_a_missing_tag_is_named_with_its_file(tmp_path, tag):
    write_series(tmp_path)
    for name in ("04.dcm",) if tag != "Modality" else ("01.dcm", "02.dcm", "03.dcm", "04.dcm"):
        edit(tmp_path / name, **{tag: None})
    message = refusal(read_volume, tmp_path)
    assert tag in message
    assert ".dcm has no" in message


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PixelSpacing": [0, 0.7]}, "PixelSpacing [0.0, 0.7], expected positive"),
        ({"PixelSpacing": [0.7]}, "PixelSpacing '0.7', expected 2 numbers"),
        ({"ImagePositionPatient": [0, 0]}, "ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "expected two unit vectors"),
        ({"RescaleSlope": 0}, "RescaleSlope 0"),
        ({"PhotometricInterpretation": "RGB"}, "PhotometricInterpretation RGB"),
        ({"NumberOfFrames": 3}, "PerFrameFunctionalGroupsSequence"),
        ({"Rows": 600}, "truncated"),
        ({"Rows": 0}, "no voxels"),
    ],
)
def test_a_tag_without_sense_is_refused(tmp_path, tags, reason):
    write_series(tmp_path, array=ramp()[:1])
    edit(tmp_path / "01.dcm", **tags)
    assert reason in refusal(read_volume, tmp_path)


def test_unsigned_ct_without_rescaling_is_refused_as_it_cannot_be_hu(tmp_path):
    write_series(tmp_path, RescaleSlope=None, RescaleIntercept=None, PixelRepresentation=0)
    assert "has no RescaleSlope" in refusal(read_volume, tmp_path)


def test_a_single_slice_of_no_thickness_is_refused(tmp_path):
    write_series(tmp_path, array=ramp()[:1], SliceThickness=None)
    assert "SpacingBetweenSlices or SliceThickness" in refusal(read_volume, tmp_path)


def test_several_series_are_listed_with_description_and_number_of_slices(tmp_path):
    write_series(tmp_path)
    write_series(tmp_path / "b", array=ramp()[:3], SeriesInstanceUID="1.2.3", SeriesDescription="lung kernel")
    for k, file in enumerate((tmp_path / "b").iterdir()):
        file.rename(tmp_path / f"b{k}")
    message = refusal(read_volume, tmp_path)
    uid = pydicom.dcmread(tmp_path / "01.dcm").SeriesInstanceUID
    assert "holds 2 series, expected one" in message
    assert "1.2.3 (lung kernel, 3 slices)" in message
    assert f"{uid} (a test, 4 slices)" in message


def test_what_is_no_series_is_refused(tmp_path):
    assert "no DICOM slices" in refusal(read_volume, tmp_path)
    (tmp_path / "a.txt").write_text("text")
    assert "no DICOM slices" in refusal(read_volume, tmp_path)
    (tmp_path / "a.dcm").write_text("text")
    for path in (tmp_path, tmp_path / "a.dcm"):
        assert f"{tmp_path / 'a.dcm'} is not a DICOM file" in refusal(read_volume, path)
    write_series(tmp_path / "scout", array=ramp()[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert "no DICOM slices" in refusal(read_volume, tmp_path / "scout")
    assert "localizer" in refusal(read_volume, tmp_path / "scout" / "01.dcm")


def test_a_slice_cut_anywhere_is_refused_and_never_passed_over(tmp_path):
    write_series(tmp_path)
    whole = (tmp_path / "04.dcm").read_bytes()
    for kept in (len(whole) - 10, len(whole) - 84, *range(140, len(whole) - 90, 13)):
        (tmp_path / "04.dcm").write_bytes(whole[:kept])
        assert "04.dcm" in refusal(read_volume, tmp_path), kept


def test_damaged_bytes_read_or_raise_a_user_error(tmp_path, capsys):
    write_series(tmp_path / "a", array=ramp()[:1])
    write_series(tmp_path / "b", array=ramp()[:1], rle=True)
    rng = np.random.default_rng(0)
    refused = 0
    for path in (tmp_path / "a" / "01.dcm", tmp_path / "b" / "01.dcm", write_multi_frame(tmp_path / "c" / "01.dcm")):
        whole = path.read_bytes()
        for _ in range(60):
            raw = bytearray(whole)
            for place in rng.integers(132, len(raw), 4):
                raw[place] = rng.integers(256)
            path.write_bytes(raw)
            try:
                read_volume(path.parent)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
    assert 20 < refused < 180
    assert "Traceback" not in capsys.readouterr().err


def test_promises_beyond_the_file_or_memory_are_refused_before_allocation(tmp_path, monkeypatch):
    monkeypatch.setattr(PixelDecoder, "decode", lambda *_: pytest.fail("pixels were read"))
    for name, rle in (("plain", False), ("rle", True)):
        write_series(tmp_path / name, array=ramp()[:1], rle=rle)
        edit(tmp_path / name / "01.dcm", Rows=30000, Columns=30000)
        assert "truncated" in refusal(read_volume, tmp_path / name)
    monkeypatch.setenv(LIMIT_VARIABLE, str(600 / 2**30))
    assert "in memory, expected at most" in refusal(read_volume, write_series(tmp_path / "large"))


def test_an_index_other_than_0_is_for_nifti(tmp_path):
    write_series(tmp_path)
    assert "expected index 0" in refusal(lambda: read_volume(tmp_path, index=1))
    np.testing.assert_array_equal(read_volume(tmp_path, index=0).array, read_volume(tmp_path).array)


def test_without_the_extra_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    path = write_series(tmp_path)
    assert "pydicom, which is not installed: pip install 'sam2-3dmed-jax[dicom]'" in refusal(read_volume, path)


def test_labels_of_another_grid_than_the_series_are_refused(tmp_path):
    volume = read_volume(write_series(tmp_path / "series"))
    assert "shapes" in refusal(read_labels, make(tmp_path / "a.nii"), volume)
