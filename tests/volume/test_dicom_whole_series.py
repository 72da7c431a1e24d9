"""A DICOM series is read whole: each file of the folder is a slice, a known companion, or an error that names it."""

import gzip
import os
import shutil
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.inference.predict_case import CaseSettings, OutputFiles, read_job
from sam2_3dmed_jax.prompts.case_table import PredictionCase
from sam2_3dmed_jax.prompts.flags import PromptFlags
from sam2_3dmed_jax.volume.io import read_grid, read_volume
from tests.helpers.dicom_files import header, ramp, save, strip_preamble, write_multi_frame, write_series
from tests.helpers.nifti_files import refusal

HU = ramp() - 1024.0
LAST = "01.dcm"  # `write_series` names its files against their order in space


def notes_of(path, **options):
    """The volume, and the warnings of reading it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(path, **options)
    return volume, [str(warning.message) for warning in caught if warning.category is FileWarning]


def without_suffixes(folder):
    for file in folder.iterdir():
        file.rename(file.with_suffix(""))
    return folder


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA", ".1", ".DCM"])
def test_files_without_preamble_are_read_whatever_their_suffix(tmp_path, implicit, suffix):
    for file in write_series(tmp_path).iterdir():
        strip_preamble(file, implicit)
        file.rename(file.with_suffix(suffix))
    volume, notes = notes_of(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)
    assert notes == []


@pytest.mark.parametrize("name", ["01", "03", "04"])
def test_one_slice_without_preamble_among_others_is_read(tmp_path, name):
    without_suffixes(write_series(tmp_path))
    strip_preamble(tmp_path / name)
    np.testing.assert_array_equal(read_volume(tmp_path).array, HU)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, HU)


def test_a_multi_frame_file_without_preamble_is_read(tmp_path):
    strip_preamble(write_multi_frame(tmp_path / "image"), implicit=False)
    expected = HU + np.arange(4)[:, None, None]
    np.testing.assert_array_equal(read_volume(tmp_path / "image").array, expected)
    np.testing.assert_array_equal(read_volume(tmp_path).array, expected)


def test_meta_information_without_preamble_is_read(tmp_path):
    write_series(tmp_path, rle=True)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[132:])
    np.testing.assert_array_equal(read_volume(tmp_path).array, HU)


DAMAGES = {
    "empty": lambda whole: b"",
    "short": lambda whole: whole[:100],
    "cut within the header": lambda whole: whole[:300],
    "cut within the pixels": lambda whole: whole[:-40],
    "without its pixels": lambda whole: whole[: -84 - 12],
    "zeros": lambda whole: bytes(len(whole)),
    "a web page": lambda whole: b"<html><body>503 Service Unavailable</body></html>" * 9,
    "packed": gzip.compress,
}


@pytest.mark.parametrize("suffix", ["", ".dcm"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_slice_is_refused_by_name_or_skipped_with_a_warning(tmp_path, damage, suffix):
    write_series(tmp_path, each={0: {"PatientComments": "x" * 500}})  # longer than the pixels of a slice
    last = (tmp_path / "04.dcm").rename(tmp_path / f"04{suffix}")
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    assert str(last) in refusal(read_volume, tmp_path)
    assert str(last) in refusal(read_volume, tmp_path / "01.dcm")
    volume, notes = notes_of(tmp_path, skip_unreadable=True)
    np.testing.assert_array_equal(volume.array, HU[1:])
    assert notes == [f"{tmp_path}: left out 1 unreadable file: {last.name}"]


@pytest.mark.parametrize("implicit", [True, False])
def test_a_slice_without_preamble_cut_anywhere_is_refused(tmp_path, implicit):
    without_suffixes(write_series(tmp_path))
    strip_preamble(tmp_path / "04", implicit)
    whole = (tmp_path / "04").read_bytes()
    for kept in range(0, len(whole), 7):
        (tmp_path / "04").write_bytes(whole[:kept])
        assert "04" in refusal(read_volume, tmp_path), kept


@pytest.mark.parametrize("syntax", ["rle", "jpeg-ls", "deflated"])
def test_a_compressed_slice_cut_within_its_pixels_is_refused_before_decoding(tmp_path, syntax):
    write_series(tmp_path, rle=syntax == "rle")
    for file in tmp_path.iterdir():
        ds = pydicom.dcmread(file)
        if syntax == "jpeg-ls":
            ds.compress(JPEGLSLossless)
        elif syntax == "deflated":
            ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        ds.save_as(file)
    np.testing.assert_array_equal(read_volume(tmp_path).array, HU)
    whole = (tmp_path / LAST).read_bytes()
    for kept in (len(whole) - 4, len(whole) - 20, len(whole) - 40):
        (tmp_path / LAST).write_bytes(whole[:kept])
        with pytest.raises(UserError, match=LAST):
            read_grid(tmp_path)
        np.testing.assert_array_equal(notes_of(tmp_path, skip_unreadable=True)[0].array, HU[:3])


@pytest.mark.parametrize("kept", [0.5, 0.99])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_a_stream_that_ends_early_within_a_complete_file_is_refused(tmp_path, syntax, kept):
    write_series(tmp_path)
    for file in tmp_path.iterdir():
        ds = pydicom.dcmread(file)
        ds.compress(syntax)
        stream = get_frame(ds.PixelData, 0, number_of_frames=1)
        if file.name == LAST:
            ds.PixelData = encapsulate([stream[: int(len(stream) * kept)]])
        ds.save_as(file)
    assert LAST in refusal(read_volume, tmp_path)


def test_known_companions_are_left_out_silently(tmp_path):
    write_series(tmp_path)
    for name in ("a.txt", "README", "a.JSON", "a.xml", "a.csv", "a.png", "labels.nii.gz", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"text")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "LICENSE.md").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    save(header(6, 7, SOPClassUID="1.2.840.10008.1.3.10"), tmp_path / "DICOMDIR")
    volume, notes = notes_of(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)
    assert notes == []


@pytest.mark.parametrize("name", ["05", "05.dcm.gz", "05.part", "1.2.840.5", "05.html", "05.DCM"])
def test_a_file_that_is_neither_dicom_nor_a_companion_is_refused(tmp_path, name):
    write_series(tmp_path)
    (tmp_path / name).write_bytes(b"something else")
    assert f"{tmp_path / name} is not a DICOM file" in refusal(read_volume, tmp_path)
    assert "--skip-unreadable" in refusal(read_volume, tmp_path)


def test_a_companion_with_the_suffix_of_the_slices_is_refused(tmp_path):
    for file in write_series(tmp_path).iterdir():
        file.rename(file.with_suffix(".img"))
    np.testing.assert_array_equal(read_volume(tmp_path).array, HU)
    (tmp_path / "04.img").write_bytes(b"")
    assert "04.img" in refusal(read_volume, tmp_path)


def test_links_are_followed_and_broken_links_refused(tmp_path):
    write_series(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for file in (tmp_path / "a").iterdir():
        (tmp_path / "b" / file.stem).symlink_to(file)
    np.testing.assert_array_equal(read_volume(tmp_path / "b").array, HU)
    (tmp_path / "a" / LAST).unlink()
    assert f"{tmp_path / 'b' / '01'} is a link" in refusal(read_volume, tmp_path / "b")


def test_several_unreadable_files_are_counted_with_examples(tmp_path):
    write_series(tmp_path)
    for name in "bcdefg":
        (tmp_path / name).write_bytes(b"")
    message = refusal(read_volume, tmp_path)
    assert str(tmp_path / "b") in message
    assert "also unreadable: c, d, e and 2 more" in message
    assert notes_of(tmp_path, skip_unreadable=True)[1] == [
        f"{tmp_path}: left out 6 unreadable files: b, c, d and 3 more"
    ]


def test_a_folder_of_unreadable_files_is_refused_even_if_they_may_be_skipped(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"")
    message = refusal(lambda: read_volume(tmp_path, skip_unreadable=True))
    assert "no DICOM slices" in message
    assert str(tmp_path / "a") in message


def test_the_chosen_file_is_never_skipped(tmp_path):
    write_series(tmp_path)
    chosen = tmp_path / LAST
    chosen.write_bytes(chosen.read_bytes()[:-40])
    assert LAST in refusal(lambda: read_volume(chosen, skip_unreadable=True))


def test_unreadable_files_of_another_series_do_not_matter(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", SeriesInstanceUID="1.2.3")
    for file in (tmp_path / "b").iterdir():
        shutil.copy(file, tmp_path / "a" / f"other-{file.name}")
    cut = tmp_path / "a" / "other-02.dcm"
    cut.write_bytes(cut.read_bytes()[:-40])
    np.testing.assert_array_equal(read_volume(tmp_path / "a" / "01.dcm").array, HU)


def test_other_dicom_objects_are_left_out_and_listed(tmp_path):
    write_series(tmp_path)
    for name, uid in (("plan", "1.2.840.10008.5.1.4.1.1.481.5"), ("report", "1.2.840.10008.5.1.4.1.1.88.11")):
        ds = header(6, 7, SOPClassUID=uid)
        del ds.Rows
        save(ds, tmp_path / name)
    strip_preamble(tmp_path / "report")
    volume, notes = notes_of(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)
    assert notes == [
        f"{tmp_path}: left out 2 DICOM files without slices of a volume: plan (RT Plan Storage), "
        "report (Basic Text SR Storage)"
    ]


@pytest.mark.parametrize(
    ("numbers", "tags", "sign"),
    [
        ((1, 2, 3, 4), {"ImagesInAcquisition": 5}, "ImagesInAcquisition is 5"),
        ((1, 2, 3, 4), {"NumberOfSlices": 6}, "NumberOfSlices is 6"),
        ((1, 2, 3, 5), {}, "InstanceNumber 4 is missing"),
        ((2, 3, 4, 5), {}, "InstanceNumber 1 is missing"),
        ((5, 4, 2, 1), {"ImagesInAcquisition": 5}, "ImagesInAcquisition is 5; InstanceNumber 3 is missing"),
        ((2, 4, 6, 10), {}, "InstanceNumber 8 is missing"),
    ],
)
def test_tags_that_suggest_more_slices_are_reported_in_one_line(tmp_path, numbers, tags, sign):
    write_series(tmp_path, each={k: {"InstanceNumber": number} for k, number in enumerate(numbers)}, **tags)
    volume, notes = notes_of(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)
    assert notes == [f"{tmp_path} has 4 slices and may be incomplete: {sign}"]


@pytest.mark.parametrize(
    ("numbers", "tags"),
    [
        ((0, 1, 2, 3), {"ImagesInAcquisition": 4, "NumberOfSlices": 4}),
        ((3, 6, 9, 12), {}),  # one of three phases
        ((65, 66, 67, 68), {}),  # a part of a series
        ((7, 1903, 52, 415), {}),  # random numbers
        ((1, 1, 1, 1), {"ImagesInAcquisition": ""}),
    ],
)
def test_a_complete_series_gives_no_warning(tmp_path, numbers, tags):
    write_series(tmp_path, each={k: {"InstanceNumber": number} for k, number in enumerate(numbers)}, **tags)
    assert notes_of(tmp_path)[1] == []


def test_the_number_of_a_localizer_is_not_missing(tmp_path):
    write_series(tmp_path, each={k: {"InstanceNumber": k + 2} for k in range(4)})
    scout = header(6, 7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], InstanceNumber=1)
    scout.PixelData = bytes(84)
    save(scout, tmp_path / "scout.dcm")
    assert [note for note in notes_of(tmp_path)[1] if "incomplete" in note] == []


def test_resampling_over_a_missing_slice_gives_a_warning(tmp_path):
    write_series(tmp_path, [(0, 0, z) for z in (0, 2.5, 5, 10)])
    (note,) = notes_of(tmp_path, resample=True)[1]
    assert "gaps between slices" in note
    assert "5 to 10 mm" in note
    assert "interpolated" in note


def test_slices_that_share_one_uid_are_all_kept_when_resampling(tmp_path):
    write_series(tmp_path, SOPInstanceUID="1.2.3")
    np.testing.assert_array_equal(read_volume(tmp_path, resample=True).array, HU)


def test_different_slices_with_one_uid_and_one_position_are_refused_when_resampling(tmp_path):
    write_series(tmp_path, SOPInstanceUID="1.2.3")
    ds = pydicom.dcmread(tmp_path / LAST)
    ds.PixelData = bytes(84)
    save(ds, tmp_path / "phase.dcm")
    assert "several slices at one position" in refusal(lambda: read_volume(tmp_path, resample=True))


def test_compressed_pixels_without_a_transfer_syntax_are_refused(tmp_path):
    write_series(tmp_path, rle=True)
    length = pydicom.dcmread(tmp_path / LAST).file_meta.FileMetaInformationGroupLength
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[132 + 12 + length :])
    message = refusal(read_volume, tmp_path)
    assert LAST in message
    assert "TransferSyntaxUID" in message


@pytest.mark.parametrize("rle", [False, True])
def test_an_empty_transfer_syntax_is_one_that_is_missing(tmp_path, rle):
    expected = read_volume(write_series(tmp_path, rle=rle)).array
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        at = content.index(b"\x02\x00\x10\x00UI")
        end = at + 8 + content[at + 6]
        length = int.from_bytes(content[140:144], "little") - content[at + 6]  # of the group
        content = content[: at + 6] + b"\0\0" + content[end:]
        file.write_bytes(content[:140] + length.to_bytes(4, "little") + content[144:])
        assert pydicom.dcmread(file, force=True).file_meta.TransferSyntaxUID == ""
    if rle:
        message = refusal(read_volume, tmp_path)
        assert ".dcm" in message and "TransferSyntaxUID" in message
    else:
        np.testing.assert_array_equal(read_volume(tmp_path).array, expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_read_permission_is_refused(tmp_path):
    write_series(tmp_path)
    (tmp_path / LAST).chmod(0)
    assert "Permission denied" in refusal(read_volume, tmp_path)


def test_predict_refuses_a_damaged_slice_before_the_checkpoint_is_loaded(tmp_path, capsys):
    write_series(tmp_path / "series")
    (tmp_path / "series" / "05").write_bytes(b"")
    words = ["predict", str(tmp_path / "absent"), str(tmp_path / "series"), "--point", "3,3,2"]
    words += ["--out", str(tmp_path / "seg.nii.gz")]
    assert main(words) == 2
    assert f"{tmp_path / 'series' / '05'} is not a DICOM file (it is empty)" in capsys.readouterr().err
    assert main([*words, "--skip-unreadable"]) == 2  # fails at the checkpoint, which does not exist
    err = capsys.readouterr().err
    assert f"warning: {tmp_path / 'series'}: left out 1 unreadable file: 05" in err
    assert "absent" in err


def test_a_dicom_seg_refers_to_the_slices_that_were_not_skipped(tmp_path):
    write_series(tmp_path / "series")
    (tmp_path / "series" / "04.dcm").write_bytes(b"")
    case = PredictionCase("a", str(tmp_path / "series"), PromptFlags(point=["3,3,1"]))
    with pytest.warns(FileWarning, match="left out 1 unreadable file: 04.dcm"):
        job = read_job(case, OutputFiles(str(tmp_path / "seg.dcm")), CaseSettings(skip_unreadable=True))
    assert len(job.dicom_source.headers) == 3
