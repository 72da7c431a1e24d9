"""Deflated DICOM: read to its end, with a note that the format has no checksum."""

import zlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sam2_3dmed_jax.errors import FileWarning
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_segmentation
from tests.helpers.dicom_files import header, ramp, save, write_series
from tests.helpers.nifti_files import refusal


def write_deflated(path, pixels, **tags):
    """Write one deflated slice, and return the path and the position of its stream."""
    ds = header(*pixels.shape, ImagePositionPatient=[-10, -20, 30], **tags)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.PixelData = pixels.tobytes()
    save(ds, path)
    return path, 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength


def test_a_deflated_slice_has_the_voxels_of_an_uncompressed_one(tmp_path):
    whole = read_volume(write_series(tmp_path / "a", array=ramp()[:1]))
    path, _ = write_deflated(tmp_path / "b" / "01.dcm", ramp()[0])
    with pytest.warns(FileWarning, match="no checksum"):
        volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, whole.array)


def test_a_deflated_stream_without_its_end_or_with_more_data_is_refused(tmp_path):
    path, start = write_deflated(tmp_path / "01.dcm", ramp()[0])
    whole = path.read_bytes()
    data = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    halves = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    first = halves.compress(data[:-20]) + halves.flush(zlib.Z_FULL_FLUSH)  # all complete blocks, without the last
    for raw in (whole[:-3], whole + b"ab", whole[:start] + first):
        path.write_bytes(raw)
        assert "01.dcm" in refusal(read_volume, path)
    path.write_bytes(whole + b"\0")  # padding to an even length
    with pytest.warns(FileWarning, match="no checksum"):
        read_volume(path)


@pytest.mark.parametrize("rows", [5, 7])
def test_deflated_pixels_of_another_length_than_stated_are_refused(tmp_path, rows):
    path, _ = write_deflated(tmp_path / "01.dcm", ramp()[0], Rows=rows)
    assert "01.dcm" in refusal(read_volume, path)


def test_a_deflated_segmentation_comes_with_the_note_too(tmp_path):
    volume = read_volume(write_series(tmp_path / "series"))
    labels = (volume.array > volume.array.mean()).astype(np.uint8)
    write_segmentation(tmp_path / "seg.dcm", labels, volume, {1: "spleen"})
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "seg.dcm")
    with pytest.warns(FileWarning, match="no checksum"):
        found = read_labels(tmp_path / "seg.dcm", volume)
    np.testing.assert_array_equal(found, labels)
