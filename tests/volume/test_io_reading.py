"""NIfTI files in: what real ones become, and what is refused."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import nifti
from sam2_3dmed_jax.volume.image_file import LIMIT_VARIABLE
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from tests.helpers.nifti_files import ORIENTATIONS, READABLE, REALDATA, make, real, refusal

REFUSED = {
    "nb_functional_4d_int16_slope.nii": "4D",
    "nb_example_nifti2.nii.gz": "4D",
    "nv_complex64.nii.gz": "complex64",
    "rjs_not_nifti.nii": "cannot be read as NIfTI",
    "nb_nifti1_header_only.hdr": "header without data",
}


def test_six_axis_orders_of_one_brain_give_one_canonical_volume():
    first, *others = [read_volume(real(f"orientations/{name}.nii.gz")) for name in ORIENTATIONS]
    assert first.array.std() > 0
    for other in others:
        np.testing.assert_array_equal(other.array, first.array)
        # float32 headers written by another tool
        np.testing.assert_allclose(other.canonical_affine, first.canonical_affine, rtol=0, atol=1e-4)
        np.testing.assert_allclose(other.spacing, first.spacing, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_canonical_volume_agrees_with_reorienting_by_nibabel(name):
    image = nib.load(real(f"orientations/{name}.nii.gz"))
    ras = nib.as_closest_canonical(image).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(
        read_volume(real(f"orientations/{name}.nii.gz")).array, ras[::-1, ::-1, :].transpose(2, 1, 0)
    )


@pytest.mark.parametrize("name", READABLE)
def test_an_awkward_header_reads(name):
    volume = read_volume(real(f"headers/{name}"))
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    assert np.isfinite(volume.array).all()
    assert volume.array.min() >= -1024


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_file_is_refused_in_one_line(name):
    path = real(f"headers/{name}")
    message = refusal(read_volume, path)
    assert str(path) in message
    assert REFUSED[name] in message


def test_every_file_in_headers_reads_or_raises_a_user_error():
    found = {path.name for path in real("headers").iterdir()}
    for name in found:
        try:
            read_volume(REALDATA / "headers" / name)
        except UserError:
            assert name not in READABLE
    assert found >= {*READABLE, *REFUSED}


def test_gantry_shear_is_kept_and_makes_the_voxel_smaller_than_its_zooms_say():
    volume = read_volume(real("headers/nv_ct_head_gantry_shear.nii.gz"))
    assert volume.array.shape == (54, 422, 306)
    cosine = volume.voxel_volume_ml * 1000 / np.prod(volume.spacing)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(18.5, abs=0.1)


def test_the_sform_wins_over_a_contradicting_qform():
    volume = read_volume(real("headers/nv_label_qform0_default.nii.gz"))
    assert nib.aff2axcodes(volume.grid.affine) == ("L", "A", "S")


def test_scaled_integers_become_hu_and_either_byte_order_reads(tmp_path):
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for order in "<>":
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(np.int16)
        image = nib.Nifti1Image(stored, np.diag([-0.7, -0.8, 5, 1]), header)
        image.header.set_slope_inter(0.5, -100)
        image.to_filename(tmp_path / "scaled.nii")
        assert nib.load(tmp_path / "scaled.nii").header.endianness == order
        volume = read_volume(tmp_path / "scaled.nii")
        np.testing.assert_array_equal(volume.array, stored.transpose(2, 1, 0) * np.float32(0.5) - 100)


def test_nan_infinity_and_padding_become_air(tmp_path):
    array = np.zeros((3, 4, 5), np.float32)
    array[0, 0, :4] = np.nan, np.inf, -np.inf, -3024
    array[1, 0, 0] = 3071
    volume = read_volume(make(tmp_path / "a.nii", array))
    np.testing.assert_array_equal(volume.array[:, 0, 0], [-1024, -1024, -1024, -1024, 0])
    assert volume.array.max() == 3071


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.img"])
@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_and_all_suffixes_read(tmp_path, name, version):
    pair = name.endswith(("hdr", "img"))
    kind = getattr(nib, f"Nifti{version}{'Pair' if pair else 'Image'}")
    volume = read_volume(make(tmp_path / name, kind=kind))
    assert volume.array.shape == (5, 4, 3)
    assert volume.spacing == pytest.approx((5, 0.8, 0.7))


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    path = make(tmp_path / "a.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5, 1))
    np.testing.assert_array_equal(read_volume(path).array, read_volume(make(tmp_path / "b.nii")).array)


def test_a_2d_image_is_refused(tmp_path):
    assert "three axes" in refusal(read_volume, make(tmp_path / "a.nii", np.zeros((3, 4), np.int16)))


def test_lengths_in_micrometres_are_refused(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "a.nii")
    assert "micrometres, expected millimetres" in refusal(read_volume, tmp_path / "a.nii")


def test_a_missing_file_and_another_format_are_refused(tmp_path):
    assert "does not exist" in refusal(read_volume, tmp_path / "none.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(b"no gzip at all")
    assert "cannot be read as NIfTI" in refusal(read_volume, tmp_path / "a.nii.gz")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert "cannot be read as NIfTI" in refusal(read_volume, tmp_path / "a.png")
    nib.save(nib.MGHImage(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.mgz")
    assert "expected NIfTI" in refusal(read_volume, tmp_path / "a.mgz")
    (tmp_path / "empty.nii").touch()
    assert str(tmp_path / "empty.nii") in refusal(read_volume, tmp_path / "empty.nii")


@pytest.mark.parametrize("suffix", [".mgz", ".mgh", ".gii", ".nii.zst", ".mnc", ".PAR"])
@pytest.mark.parametrize("stored", ["a.nii", "a.nii.gz", "text"])
def test_a_file_with_the_suffix_of_another_format_of_nibabel_is_refused_by_name(tmp_path, suffix, stored):
    content = b"hello\n" if stored == "text" else make(tmp_path / stored).read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(content)
    assert f"b{suffix} " in refusal(read_volume, tmp_path / f"b{suffix}")


def test_a_truncated_file_is_refused_whether_compressed_or_not(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        whole = make(tmp_path / name, array).read_bytes()
        for kept in (0.001, 0.05, 0.5, 0.99):
            (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
            assert str(tmp_path / name) in refusal(read_volume, tmp_path / name)


def test_a_header_that_promises_more_than_the_file_holds_is_refused_before_allocation(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "_read", lambda *_: pytest.fail("voxels were read"))
    monkeypatch.setenv(LIMIT_VARIABLE, "8")
    for name in ("a.nii", "a.nii.gz"):
        raw = bytearray(gzip.decompress(make(tmp_path / "a.nii.gz").read_bytes()))
        for dim, reason in (((1000, 1000, 1000), "truncated"), ((32767, 32767, 32767), "at most 8 GiB")):
            raw[42:48] = np.array(dim, "<i2").tobytes()
            (tmp_path / name).write_bytes(raw if name == "a.nii" else gzip.compress(raw))
            assert reason in refusal(read_volume, tmp_path / name)


def test_damaged_headers_read_or_raise_a_user_error(tmp_path):
    whole = make(tmp_path / "a.nii").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        raw = bytearray(whole)
        for place in rng.integers(0, 352, 3):
            raw[place] = rng.integers(256)
        (tmp_path / "a.nii").write_bytes(raw)
        try:
            read_volume(tmp_path / "a.nii")
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 50 < refused < 400


def test_real_labels_lie_on_their_volumes():
    for image, labels in (("abdomen/ct", "abdomen/organs6_from_v1"), ("chest/ct", "chest/lung")):
        volume = read_volume(real(f"{image}.nii.gz"))
        found = read_labels(real(f"{labels}.nii.gz"), volume)
        assert found.dtype == np.int32
        assert found.shape == volume.array.shape
        assert found.max() > 0
    abdomen = read_volume(real("abdomen/ct.nii.gz"))
    organs = read_labels(real("abdomen/organs6_from_v1.nii.gz"), abdomen)
    assert np.count_nonzero(organs == 2) == 9677
    depth, rows, columns = (np.argwhere(organs == label).mean(axis=0) for label in (4, 2, 1))
    assert rows[2] > depth[2]  # the spleen lies to the left of the liver
    assert columns[0] > rows[0]  # and the lungs above the spleen


def test_labels_on_another_grid_are_refused_with_both_files_named(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    zeros = np.zeros((3, 4, 5), np.uint8)
    affine = volume.grid.affine
    moved, wider, turned = (np.array(affine) for _ in range(3))
    moved[0, 3], wider[2, 2], turned[0, 1] = 0.5, 5.1, 0.01
    others = [("shapes", np.zeros((3, 4, 6), np.uint8), affine)]
    others += [("affines differ by up to", zeros, other) for other in (moved, wider, turned)]
    for reason, array, other in others:
        path = make(tmp_path / "label.nii.gz", array, other)
        message = refusal(read_labels, path, volume)
        assert reason in message
        assert str(path) in message
        assert str(tmp_path / "ct.nii") in message


def test_rounding_of_an_affine_is_no_other_grid(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    path = make(tmp_path / "label.nii", np.ones((3, 4, 5), np.uint8), volume.grid.affine + 1e-4)
    assert read_labels(path, volume).all()


def test_labels_stored_in_another_axis_order_match_their_voxels(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    stored = nib.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), volume.grid.affine)
    expected = read_labels(make(tmp_path / "label.nii", np.asarray(stored.dataobj), stored.affine), volume)
    for codes in ORIENTATIONS:
        transform = nib.orientations.ornt_transform(
            nib.io_orientation(stored.affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
        nib.save(stored.as_reoriented(transform), tmp_path / f"{codes}.nii")
        np.testing.assert_array_equal(read_labels(tmp_path / f"{codes}.nii", volume), expected)


def test_fractions_nan_and_huge_values_are_no_labels(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    for dtype, value, reason in (
        (np.float32, 0.5, "0.5, expected integer labels"),
        (np.float32, np.nan, "nan, expected integer labels"),
        (np.float64, 1e12, "32-bit"),
        (np.uint32, 2**32 - 1, "32-bit"),
    ):
        array = np.zeros((3, 4, 5), dtype)
        array[1, 1, 1] = value
        assert reason in refusal(read_labels, make(tmp_path / "label.nii", array), volume)


def test_whole_numbers_stored_as_floats_are_labels(tmp_path):
    volume = read_volume(make(tmp_path / "ct.nii"))
    labels = read_labels(make(tmp_path / "label.nii", np.full((3, 4, 5), 7.0)), volume)
    assert labels.dtype == np.int32
    assert (labels == 7).all()


def test_a_pipe_named_as_an_image_or_a_label_map_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "f.nii.gz")
    image = read_volume(make(tmp_path / "image.nii"))
    for read in (read_volume, lambda path: read_labels(path, image)):
        with pytest.raises(UserError, match=r"f\.nii\.gz is a pipe, expected a file; give an image file"):
            read(tmp_path / "f.nii.gz")
