"""Stored values are those of BitsStored, HighBit and PixelRepresentation, in every transfer syntax and decoder."""

import io
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own abbreviation
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.dicom_bits import stored_values
from sam2_3dmed_jax.volume.io import read_volume
from tests.helpers.dicom_files import write_series
from tests.helpers.nifti_files import refusal

RNG = np.random.default_rng(0)
SHAPE = (2, 12, 10)
TRUTH = RNG.integers(-1024, 1800, SHAPE)  # HU
UNSIGNED = TRUTH + 1024  # 12 bits
SIGNED = TRUTH & 0xFFF  # 12 bits, two's complement
OVERLAY = (RNG.integers(0, 2, SHAPE)) << 12
GARBAGE = RNG.integers(0, 16, SHAPE)

# Stored values of 16 bits, PixelRepresentation and HighBit.
KINDS = {
    "overlay": (UNSIGNED | OVERLAY, 0, 11),
    "garbage": (UNSIGNED | GARBAGE << 12, 0, 11),
    "signed overlay": (SIGNED | OVERLAY, 1, 11),
    "signed garbage": (SIGNED | GARBAGE << 12, 1, 11),
    "high bit 15": (UNSIGNED << 4 | GARBAGE, 0, 15),
    "signed high bit 15": (SIGNED << 4 | GARBAGE, 1, 15),
    "high bit 13": (UNSIGNED << 2 | GARBAGE & 3 | (GARBAGE & 12) << 12, 0, 13),
    "clean": (UNSIGNED, 0, 11),
    "signed clean": (TRUTH & 0xFFFF, 1, 11),
}
SYNTAXES = [
    *("explicit", "implicit", "big endian", "deflated", "rle", "jpeg-ls"),
    *("jpeg 2000", "signed jpeg 2000", "jpeg 2000 by ITK", "jpeg lossless"),
]


def jpeg_2000(plane, signed):
    """A lossless stream of 16 bits per pixel, written by OpenJPEG."""
    stream = io.BytesIO()
    image = Image.fromarray(plane)
    image.save(stream, "JPEG2000", no_jp2=True, irreversible=False, num_resolutions=2, signed=signed)
    return stream.getvalue()


def by_itk(plane, codec, folder):
    """Pixel data and transfer syntax of a file that ITK writes."""
    writer = sitk.ImageFileWriter()
    writer.UseCompressionOn()
    writer.SetCompressor(codec)
    writer.SetFileName(str(folder / "itk.dcm"))
    writer.Execute(sitk.GetImageFromArray(plane[None]))
    ds = pydicom.dcmread(folder / "itk.dcm")
    return ds.PixelData, ds.file_meta.TransferSyntaxUID


def write(folder, stored, syntax, tags):
    """Write a series with 16 bits per pixel, and give it its tags afterwards, as encoders may refuse them."""
    stored = stored.astype(np.uint16)
    write_series(folder / "series", array=stored, PixelRepresentation=0)
    uncompressed = {
        "implicit": ImplicitVRLittleEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
    }
    for plane, file in zip(stored, sorted((folder / "series").iterdir(), reverse=True), strict=True):
        ds = pydicom.dcmread(file)
        if syntax in uncompressed:
            ds.file_meta.TransferSyntaxUID = uncompressed[syntax]
        elif syntax == "big endian":
            ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            ds.PixelData = plane.astype(">u2").tobytes()
        elif syntax in ("rle", "jpeg-ls"):
            ds.compress({"rle": RLELossless, "jpeg-ls": JPEGLSLossless}[syntax], generate_instance_uid=False)
        elif syntax in ("jpeg 2000", "signed jpeg 2000"):
            ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
            ds.PixelData = encapsulate([jpeg_2000(plane, syntax.startswith("signed"))])
        elif syntax != "explicit":
            codec = {"jpeg 2000 by ITK": "JPEG2000", "jpeg lossless": "JPEG"}[syntax]
            ds.PixelData, ds.file_meta.TransferSyntaxUID = by_itk(plane, codec, folder)
        for keyword, value in tags.items():
            setattr(ds, keyword, value)
        pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return folder / "series"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_only_the_stored_bits_are_read(tmp_path, syntax, kind):
    stored, signed, high = KINDS[kind]
    tags = {"BitsStored": 12, "HighBit": high, "PixelRepresentation": signed}
    path = write(tmp_path, stored, syntax, {**tags, "RescaleIntercept": 0 if signed else -1024})
    np.testing.assert_array_equal(read_volume(path).array, TRUTH)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_of_full_width_are_read_unchanged(tmp_path, syntax, signed):
    stored = RNG.integers(0, 2**16, SHAPE)
    path = write(tmp_path, stored, syntax, {"PixelRepresentation": signed, "RescaleIntercept": 0, "Modality": "MR"})
    expected = stored.astype(np.uint16).view(np.int16) if signed else stored
    np.testing.assert_array_equal(read_volume(path).array, expected)


def test_values_below_their_high_bit_are_refused(tmp_path):
    path = write(tmp_path, UNSIGNED, "explicit", {"BitsStored": 12, "HighBit": 15})
    assert "01.dcm has HighBit 15, but its values are in the lowest 12 bits" in refusal(read_volume, path)


@pytest.mark.parametrize(("stored", "high"), [(12, 16), (12, 10), (0, 0)])
def test_contradictory_bits_are_refused(tmp_path, stored, high):
    path = write(tmp_path, UNSIGNED, "explicit", {"BitsStored": stored, "HighBit": high})
    message = refusal(read_volume, path)
    assert "01.dcm" in message
    assert str(stored) in message


def bits(allocated, stored, high, signed):
    return SimpleNamespace(
        BitsAllocated=allocated,
        get={"BitsStored": stored, "HighBit": high, "PixelRepresentation": signed}.get,
    )


@pytest.mark.parametrize("allocated", [8, 16, 32, 64])
@pytest.mark.parametrize("signed", [0, 1])
def test_every_allocation_is_masked_and_sign_extended(allocated, signed):
    stored = allocated - 3
    values = np.array([0, 1, -1 if signed else (1 << stored) - 1, 5, 1 << (stored - 2)])
    pixels = (values & ((1 << stored) - 1)).astype(f"u{allocated // 8}") | np.array(7 << stored, f"u{allocated // 8}")
    for container in (pixels, pixels.view(f"i{allocated // 8}")):
        found = stored_values(container, bits(allocated, stored, stored - 1, signed), "a.dcm")
        np.testing.assert_array_equal(found, values)


def test_a_wider_type_than_allocated_is_masked_too():
    found = stored_values(np.array([0x1FFF, 0x0800], np.int32), bits(16, 12, 11, 1), "a.dcm")
    np.testing.assert_array_equal(found, [-1, -2048])


def test_a_narrower_type_is_the_precision_of_the_stream():
    found = stored_values(np.array([-1, 100], np.int8), bits(16, 12, 11, 1), "a.dcm")
    np.testing.assert_array_equal(found, [-1, 100])
    with pytest.raises(UserError, match="8 bits per pixel"):
        stored_values(np.array([1], np.uint8), bits(16, 12, 15, 0), "a.dcm")


def test_missing_tags_mean_all_allocated_bits_and_floats_are_unchanged():
    pixels = np.array([0, 65535], np.uint16)
    np.testing.assert_array_equal(stored_values(pixels, bits(16, None, None, None), "a.dcm"), pixels)
    floats = np.array([0.5, -3e5], np.float32)
    np.testing.assert_array_equal(stored_values(floats, bits(32, 12, 11, 0), "a.dcm"), floats)
