"""Damaged and hostile DICOM: decoders that crash, deflated bombs, and positions far from any body."""

import contextlib
import tracemalloc
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime.guarded_process import GuardedProcess
from sam2_3dmed_jax.volume import dicom_pixels
from sam2_3dmed_jax.volume.io import open_image, read_grid, read_volume
from tests.helpers.dicom_files import AXIAL, edit, ramp, save, write_series
from tests.helpers.nifti_files import refusal


def test_rle_data_of_no_sense_are_refused(tmp_path):
    for file in write_series(tmp_path).iterdir():
        ds = pydicom.dcmread(file)
        ds.file_meta.TransferSyntaxUID = RLELossless
        ds.PixelData = pydicom.encaps.encapsulate([bytes(240)])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.save_as(file)
    assert "01.dcm" in refusal(read_volume, tmp_path)


def test_a_decoder_that_dies_is_one_sentence_and_not_the_end_of_this_process(tmp_path, monkeypatch):
    write_series(tmp_path, rle=True)
    dying = "tests.helpers.child_functions:divide_by_zero"
    monkeypatch.setattr(dicom_pixels, "GuardedProcess", lambda function: GuardedProcess(dying))
    message = refusal(read_volume, tmp_path)
    assert "RLE Lossless whose decoder failed (it crashed with SIGFPE)" in message
    assert "01.dcm" in message


def test_uncompressed_pixels_need_no_child(tmp_path, monkeypatch):
    monkeypatch.setattr(GuardedProcess, "call", lambda *_: pytest.fail("a child was started"))
    assert read_volume(write_series(tmp_path)).array.shape == (4, 6, 7)


@pytest.mark.parametrize("read", [read_grid, read_volume])
def test_a_deflated_element_larger_than_any_header_is_refused_before_it_is_inflated(tmp_path, read):
    file = next(write_series(tmp_path, array=ramp()[:1]).iterdir())
    ds = pydicom.dcmread(file)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.add_new((9, 0x10), "LO", "X")
    ds.add_new((9, 0x1001), "OB", bytes(2**26))
    save(ds, file)
    del ds
    tracemalloc.start()
    message = refusal(read, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "inflates to more than" in message
    assert peak < 2**25


def test_deflated_zeros_after_the_pixels_are_refused_without_being_kept(tmp_path):
    file = next(write_series(tmp_path, array=ramp()[:1]).iterdir())
    ds = pydicom.dcmread(file)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.add_new((0xFFFC, 0xFFFC), "OB", bytes(2**24))
    save(ds, file)
    assert "inflates to more than" in refusal(read_grid, tmp_path)


@pytest.mark.parametrize("far", [1e4, 1e8, 1e9, 1e10, 1e300])
def test_a_slice_far_away_is_refused_or_resampled_in_little_memory(tmp_path, far):
    positions = [(-10, -20, 2.0 * k) for k in range(3)] + [(-10, -20, far)]
    write_series(tmp_path, positions, np.zeros((4, 6, 7), np.int16))
    tracemalloc.start()
    if far <= 1e6:
        with pytest.warns(UserWarning, match="gaps between slices"):
            assert read_volume(tmp_path, resample=True).array.shape == (5001, 6, 7)
    else:
        assert "expected at most 1e+06 mm" in refusal(lambda: read_volume(tmp_path, resample=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


@pytest.mark.parametrize("step", [(1e5, 0, 2), (0, 1e5, 0.5)])
def test_a_grid_around_tilted_slices_is_checked_before_it_is_made(tmp_path, step, monkeypatch):
    monkeypatch.setenv("SAM2_3DMED_MAX_VOLUME_GIB", "0.01")
    write_series(tmp_path, [np.array(step) * k for k in range(4)], orientation=AXIAL)
    tracemalloc.start()
    message = refusal(lambda: read_volume(tmp_path, resample=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "expected at most 0.01 GiB" in message
    assert peak < 2**25


def test_slices_of_one_uid_are_kept_by_their_positions(tmp_path):
    write_series(tmp_path, positions=[(0, 0, z) for z in (0, 2, 4, 8)])
    for file in tmp_path.iterdir():
        edit(file, SOPInstanceUID="1.2.3")
    with pytest.warns(UserWarning, match="gaps between slices"):
        volume = read_volume(tmp_path, resample=True)
    assert volume.array.shape == (5, 6, 7)
    regular = write_series(tmp_path / "regular")
    for file in regular.iterdir():
        edit(file, SOPInstanceUID="1.2.3")
    np.testing.assert_array_equal(read_volume(regular).array, read_volume(regular, resample=True).array)


@pytest.mark.parametrize("keyword", ["NumberOfFrames", "InstanceNumber", "ImagesInAcquisition"])
@pytest.mark.parametrize("value", [b"inf\\1e40", b"0.5     ", b"x\0\x1b     ", b"        "])
def test_an_element_that_pydicom_cannot_convert_causes_no_warning_of_pydicom(tmp_path, keyword, value):
    for file in write_series(tmp_path, **{keyword: "77777777"}).iterdir():
        content = file.read_bytes()
        assert content.count(b"77777777") == 1
        file.write_bytes(content.replace(b"77777777", value))
    with warnings.catch_warnings(), contextlib.suppress(UserError):
        warnings.simplefilter("error")
        warnings.simplefilter("default", FileWarning)
        open_image(tmp_path).read(None)
