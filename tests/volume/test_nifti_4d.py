"""One volume of a 4D NIfTI, chosen by its index."""

import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.volume.geometry import to_canonical
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels
from tests.helpers.nifti_files import make, real, refusal


@pytest.mark.parametrize("name", ["nb_functional_4d_int16_slope.nii", "nb_example_nifti2.nii.gz"])
def test_one_volume_of_a_4d_file_reads_by_its_index(name):
    path = real(f"headers/{name}")
    image = nib.load(path)
    for index in range(image.shape[3]):
        volume = read_volume(path, index=index)
        expected = image.slicer[..., index]
        np.testing.assert_array_equal(
            volume.array, np.maximum(to_canonical(expected.get_fdata(dtype=np.float32), volume.grid), -1024)
        )
        np.testing.assert_array_equal(volume.grid.affine, expected.affine)


@pytest.mark.parametrize(("name", "count"), [("nb_functional_4d_int16_slope.nii", 20), ("nb_example_nifti2.nii.gz", 2)])
def test_a_4d_file_without_an_index_or_with_one_out_of_range_names_the_limit(name, count):
    path = real(f"headers/{name}")
    message = refusal(read_volume, path)
    assert f"holds {count} volumes" in message
    assert f"from 0 to {count - 1}" in message
    for index in (count, -1):
        assert f"no volume {index}, expected an index from 0 to {count - 1}" in refusal(
            lambda index=index: read_volume(path, index=index)
        )


def test_no_other_volume_of_a_4d_file_is_read(tmp_path):
    path = make(tmp_path / "a.nii", np.zeros((30, 30, 30, 20), np.int16))
    tracemalloc.start()
    read_volume(path, index=7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # As stored, as float32 in file order, and in canonical order, with room for nibabel: far below 20 volumes.
    assert peak < 6 * 30**3 * 4 < 20 * 30**3 * 2


def test_axes_after_the_fourth_are_counted_in_the_order_of_the_file(tmp_path):
    array = np.arange(2 * 3 * 4 * 2 * 3, dtype=np.int16).reshape((2, 3, 4, 2, 3), order="F")
    path = make(tmp_path / "a.nii", array)
    np.testing.assert_array_equal(np.unique(read_volume(path, index=3).array), np.arange(72, 96))
    assert "holds 6 volumes" in refusal(read_volume, path)


def test_an_index_of_a_3d_file_can_only_be_0(tmp_path):
    path = make(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(path, index=0).array, read_volume(path).array)
    assert "expected an index from 0 to 0" in refusal(lambda: read_volume(path, index=1))


def test_labels_of_a_4d_file_are_3d_with_its_geometry(tmp_path):
    source = nib.load(real("headers/nb_functional_4d_int16_slope.nii"))
    volume = read_volume(real("headers/nb_functional_4d_int16_slope.nii"), index=3)
    labels = (volume.array > volume.array.mean()).astype(np.int32)
    write_labels(tmp_path / "labels.nii.gz", labels, volume)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert written.shape == source.shape[:3]
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz", volume), labels)
