"""NIfTI files out: geometry is kept, and writing is whole or not at all."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels, write_nifti
from tests.helpers.nifti_files import ORIENTATIONS, READABLE, make, real, refusal

GEOMETRY = ("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d")
GEOMETRY += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")


@pytest.mark.parametrize(
    "name", [*(f"orientations/{name}.nii.gz" for name in ORIENTATIONS), *(f"headers/{name}" for name in READABLE)]
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_written_labels_have_the_geometry_of_their_image_to_the_bit(tmp_path, name, suffix):
    source = nib.load(real(name))
    volume = read_volume(real(name))
    labels = (np.random.default_rng(0).uniform(size=volume.array.shape) < 0.3).astype(np.int32) * 3
    path = tmp_path / f"labels{suffix}"
    write_labels(path, labels, volume)
    written = nib.load(path)
    assert written.shape == source.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(written.header["pixdim"][:4], source.header["pixdim"][:4])
    for field in GEOMETRY:
        np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=field)
    np.testing.assert_array_equal(read_labels(path, volume), labels)


def test_a_nifti2_affine_in_float64_survives(tmp_path):
    affine = np.diag([-0.7, -0.8, 5, 1]) + np.pi * np.eye(4, k=3)
    volume = read_volume(make(tmp_path / "ct.nii", affine=affine, kind=nib.Nifti2Image))
    write_labels(tmp_path / "label.nii.gz", np.ones((5, 4, 3), np.int32), volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "label.nii.gz").affine, affine)


def test_labels_are_written_in_the_order_of_the_file(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii", affine=np.diag([0.7, -0.8, -5, 1])))
    labels = np.zeros((5, 4, 3), np.int32)
    labels[0, 1, 2] = 1  # lowest slice, second row from anterior, leftmost column
    write_labels(tmp_path / "label.nii", labels, volume)
    assert np.argwhere(np.asarray(nib.load(tmp_path / "label.nii").dataobj)).tolist() == [[0, 1, 4]]


def test_labels_above_255_are_stored_as_uint16_and_bools_as_uint8(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    write_labels(tmp_path / "a.nii", np.full((5, 4, 3), 65535), volume)
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.uint16
    assert (read_labels(tmp_path / "a.nii", volume) == 65535).all()
    write_labels(tmp_path / "b.nii", np.ones((5, 4, 3), bool), volume)
    assert nib.load(tmp_path / "b.nii").get_data_dtype() == np.uint8


def test_no_text_of_the_source_header_reaches_the_label_map(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"DOE^JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    image.to_filename(tmp_path / "DOE.nii")
    write_labels(tmp_path / "label.nii.gz", np.ones((5, 4, 3), np.int32), read_volume(tmp_path / "DOE.nii"))
    raw = (tmp_path / "label.nii.gz").read_bytes()
    assert b"DOE" not in raw + gzip.decompress(raw)
    assert nib.load(tmp_path / "label.nii.gz").header["descrip"] == b"research use only"


def test_the_same_labels_give_the_same_bytes(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, np.ones((5, 4, 3), np.int32), volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_the_parent_folder_is_created(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    write_labels(tmp_path / "a/b/label.nii", np.ones((5, 4, 3), np.int32), volume)
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["label.nii"]


def test_another_suffix_is_refused_and_no_folder_made(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    for name in ("a.mha", "a.nii.bz2", "a", "a.gz", "a.img"):
        assert "expected .nii or .nii.gz" in refusal(
            write_labels, tmp_path / "out" / name, np.ones((5, 4, 3), np.int32), volume
        )
    assert not (tmp_path / "out").exists()


def test_labels_that_do_not_fit_are_refused(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    for value in (-1, 65536):
        assert "expected 0 to 65535" in refusal(write_labels, tmp_path / "a.nii", np.full((5, 4, 3), value), volume)
    with pytest.raises(ValueError, match="grid"):
        write_labels(tmp_path / "a.nii", np.ones((3, 4, 5), np.int32), volume)
    with pytest.raises(ValueError, match="integers"):
        write_labels(tmp_path / "a.nii", np.ones((5, 4, 3)), volume)
    assert not (tmp_path / "a.nii").exists()


def test_the_image_itself_is_never_overwritten_by_its_labels(tmp_path):
    path = make(tmp_path / "ct.nii")
    before = path.read_bytes()
    message = refusal(write_labels, path, np.ones((5, 4, 3), np.int32), read_volume(path))
    assert "is the image itself, which would be replaced" in message
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", ["to_filename", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    volume = read_volume(make(tmp_path / "ct.nii"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/label.nii.gz").write_bytes(b"old")

    def fail(*arguments):
        for argument in arguments:
            if isinstance(argument, Path) and argument.name != "label.nii.gz":
                argument.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((nib.Nifti1Image, step) if step == "to_filename" else (os, step)), fail)
    message = refusal(write_labels, tmp_path / "out/label.nii.gz", np.ones((5, 4, 3), np.int32), volume)
    assert "No space left on device" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["label.nii.gz"]
    assert (tmp_path / "out/label.nii.gz").read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    message = refusal(write_labels, tmp_path / "ct.nii/label.nii", np.ones((5, 4, 3), np.int32), volume)
    assert "cannot be written" in message


def test_a_volume_that_came_from_no_file_is_written_with_both_forms(tmp_path):
    affine = np.array([[0, 0, 2.5, 7], [0.7, 0, 0, -8], [0, -0.7, 0, 9], [0, 0, 0, 1]])
    volume = Volume(np.zeros((4, 3, 5), np.float32), Grid((3, 4, 5), affine))
    write_labels(tmp_path / "label.nii", np.ones((4, 3, 5), np.int32), volume)
    header = nib.load(tmp_path / "label.nii").header
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    for form in (header.get_sform(), header.get_qform()):
        np.testing.assert_allclose(form, affine, rtol=0, atol=1e-5)  # float32 header


def test_a_sheared_affine_gets_no_qform(tmp_path):
    affine = np.eye(4)
    affine[1, 2] = 0.3
    write_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16), affine)
    header = nib.load(tmp_path / "a.nii").header
    assert (header["sform_code"], header["qform_code"]) == (1, 0)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").grid.affine, affine.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_written_array_reads_back_unscaled(tmp_path, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    write_nifti(tmp_path / "a.nii.gz", array, np.eye(4))
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    with pytest.raises(ValueError, match="expected 3 of"):
        write_nifti(tmp_path / "b.nii", array.astype(np.complex64), np.eye(4))


def test_a_header_copied_without_its_data_is_refused(tmp_path):
    make(tmp_path / "a.img", kind=nib.Nifti1Pair)
    shutil.copy(tmp_path / "a.hdr", tmp_path / "b.hdr")
    assert "b.img" in refusal(read_volume, tmp_path / "b.hdr")
    (tmp_path / "a.hdr").unlink()
    assert str(tmp_path / "a.img") in refusal(read_volume, tmp_path / "a.img")
