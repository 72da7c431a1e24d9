"""NRRD and MetaImage files in: LPS becomes RAS, and what is not a scalar volume is refused."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own abbreviation

from sam2_3dmed_jax.volume import itk
from sam2_3dmed_jax.volume.image_file import LIMIT_VARIABLE
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels
from tests.helpers.nifti_files import make, real, refusal

SUFFIXES = ("nrrd", "nhdr", "mha", "mhd")
DIRECTION = tuple(np.linalg.qr([[1, 0.2, 0], [0.1, -1, 0.3], [0.2, 0.1, 1]])[0].ravel())
ARRAY = np.arange(60, dtype=np.int16).reshape(5, 4, 3)


def written(path, array=ARRAY, direction=DIRECTION, compress=False, vector=False):
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing((0.7, 0.8, 5.0)[: image.GetDimension()])
    image.SetOrigin((10.0, -20.0, 30.0)[: image.GetDimension()])
    if image.GetDimension() == 3:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), useCompression=compress)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compress", [False, True])
def test_each_voxel_lies_where_simpleitk_says(tmp_path, suffix, compress):
    path = written(tmp_path / f"a.{suffix}", compress=compress)
    volume, image = read_volume(path), sitk.ReadImage(str(path))
    assert volume.grid.shape == (3, 4, 5)
    assert volume.modality == "CT"
    for voxel in np.ndindex(3, 4, 5):
        lps = image.TransformIndexToPhysicalPoint(voxel)
        found = (volume.grid.affine @ [*voxel, 1])[:3]
        np.testing.assert_allclose(found, (-lps[0], -lps[1], lps[2]), atol=1e-9)
    np.testing.assert_array_equal(np.sort(volume.array.ravel()), np.arange(60))


def test_a_nifti_and_a_nrrd_of_one_ct_are_one_volume(tmp_path):
    nifti = real("chest/ct.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(tmp_path / "ct.nrrd"), useCompression=True)
    one, other = read_volume(nifti), read_volume(tmp_path / "ct.nrrd")
    np.testing.assert_array_equal(other.array, one.array)
    np.testing.assert_allclose(other.canonical_affine, one.canonical_affine, atol=1e-4)  # ITK rounds the quaternion
    assert read_labels(real("chest/lung.nii.gz"), other).max() == 1


def test_the_shared_liver_reads_as_the_file_says(tmp_path):
    volume = read_volume(real("dicom/liver_seg.nrrd"))
    np.testing.assert_allclose(volume.spacing, (1, 0.810547, 0.810547))
    np.testing.assert_allclose(volume.grid.affine[:3, 3], (235.2, 226.8, -128.69))


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_labels_of_a_file_are_written_as_nifti_on_its_grid(tmp_path, suffix):
    volume = read_volume(written(tmp_path / f"ct.{suffix}"))
    labels = (volume.array % 3).astype(np.int32)
    write_labels(tmp_path / "labels.nii.gz", labels, volume)
    image = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), ARRAY % 3)
    np.testing.assert_allclose(image.GetDirection(), DIRECTION, atol=1e-6)  # of NIfTI's float32
    np.testing.assert_array_equal(read_labels(written(tmp_path / f"l.{suffix}", ARRAY % 3), volume), labels)


def test_padding_and_nan_become_air(tmp_path):
    array = np.zeros((5, 4, 3), np.float32)
    array[0, 0] = np.nan, -3024, np.inf
    volume = read_volume(written(tmp_path / "a.mha", array))
    assert sorted(np.unique(volume.array)) == [-1024, 0]
    assert np.count_nonzero(volume.array) == 3


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_vectors_complex_2d_and_4d_are_refused(tmp_path, suffix):
    for array, vector, reason in (
        (np.zeros((5, 4, 3, 2), np.uint8), True, "vector"),
        (np.zeros((4, 3), np.int16), False, "2 axes"),
        (np.zeros((2, 5, 4, 3), np.int16), False, "4 axes"),
    ):
        path = tmp_path / f"a.{suffix}"
        image = sitk.GetImageFromArray(array, isVector=vector)
        sitk.WriteImage(image, str(path))
        message = refusal(read_volume, path)
        assert reason in message
        assert str(path) in message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_file_is_refused(tmp_path, suffix, compress):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    path = written(tmp_path / f"a.{suffix}", array, compress=compress)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    whole = data.read_bytes()
    for kept in (0.001, 0.05, 0.5, 0.99):
        data.write_bytes(whole[: int(len(whole) * kept)])
        assert str(tmp_path) in refusal(read_volume, path)
    if data != path:
        data.unlink()
        assert "header without data" in refusal(read_volume, path)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_promise_beyond_the_file_or_memory_is_refused_before_allocation(tmp_path, suffix, compress, monkeypatch):
    monkeypatch.setattr(itk, "read_parts", lambda *_: pytest.fail("voxels were read"))
    monkeypatch.setenv(LIMIT_VARIABLE, "8")
    path = written(tmp_path / f"a.{suffix}", compress=compress)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b" 3 4 5", b" 900 900 900"))
    assert "truncated" in refusal(read_volume, path)
    path.write_bytes(whole.replace(b" 3 4 5", b" 9000 9000 9000"))
    assert "at most 8 GiB" in refusal(read_volume, path)
    assert LIMIT_VARIABLE in refusal(read_volume, path)


def test_files_that_are_something_else_are_refused(tmp_path):
    for suffix in SUFFIXES:
        for content in (b"", b"text", gzip.compress(b"text"), bytes(500)):
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(content)
            assert str(path) in refusal(read_volume, path)


def test_lengths_in_micrometres_are_refused(tmp_path):
    path = written(tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes().replace(b"encoding:", b'space units: "um" "um" "um"\nencoding:'))
    assert "expected millimetres" in refusal(read_volume, path)


def test_an_index_other_than_0_is_for_nifti(tmp_path):
    path = written(tmp_path / "a.mha")
    assert "expected index 0" in refusal(lambda: read_volume(path, index=2))


def test_the_package_and_nifti_need_neither_simpleitk_nor_pydicom(tmp_path):
    code = (
        "import sys\n"
        "for name in ('SimpleITK', 'pydicom', 'highdicom'): sys.modules[name] = None\n"
        "import sam2_3dmed_jax\n"
        "from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels\n"
        "import sam2_3dmed_jax.volume.dicom_seg\n"
        "volume = read_volume(sys.argv[1])\n"
        "write_labels(sys.argv[2], volume.array.astype(int), volume)\n"
        "assert read_labels(sys.argv[2], volume).max() == 59\n"
    )
    arguments = [str(make(tmp_path / "ct.nii.gz")), str(tmp_path / "labels.nii.gz")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
