"""DICOM series in: geometry from positions, values from each slice's own scaling, whatever the files are called."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own abbreviation
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from sam2_3dmed_jax.volume.geometry import voxel_to_canonical
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels
from tests.helpers.dicom_files import SHAPE, edit, header, ramp, save, write_multi_frame, write_series
from tests.helpers.nifti_files import real

SAGITTAL = (0, 1, 0, 0, 0, -1)
OBLIQUE = tuple(np.linalg.qr([[1, 0.2], [0.1, 1], [0.3, -0.2]])[0].T.ravel() * np.repeat([-1, -1], 3))
LPS = np.diag([-1, -1, 1, 1])


def test_the_shared_series_lies_where_its_liver_does():
    volume = read_volume(real("dicom/ct-3slice"))
    assert volume.array.shape == (3, 512, 512)
    assert volume.modality == "CT"
    # The slices are 1 mm apart, and 1.25 mm thick; the header gives positions with six decimals.
    np.testing.assert_allclose(volume.spacing, (1.0, 0.810547, 0.810547), atol=1e-6)
    liver = read_labels(real("dicom/liver_seg.nrrd"), volume)
    assert np.count_nonzero(liver == 1) > 100_000
    assert volume.array[liver == 1].mean() == pytest.approx(37, abs=20)  # HU of liver; of the whole picture it is -600
    assert volume.array.min() == -1024  # from -3024
    at = np.argwhere(liver == 1).mean(axis=0)
    right, _, _ = (volume.canonical_affine @ [*at, 1])[:3]
    assert right > 0  # RAS x grows to the right: the liver's side


def test_the_shared_series_has_the_geometry_that_simpleitk_reads():
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real("dicom/ct-3slice")))
    image = sitk.ReadImage(names)
    volume = read_volume(real("dicom/ct-3slice"))
    assert volume.grid.shape == image.GetSize()
    for voxel in ((0, 0, 0), (511, 3, 2), (100, 200, 1)):
        lps = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(LPS @ volume.grid.affine @ [*voxel, 1], [*lps, 1], atol=1e-5)  # their decimals
        index = tuple(int(n) for n in voxel_to_canonical(volume.grid, voxel))
        assert volume.array[index] == max(image[voxel], -1024)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0), SAGITTAL, OBLIQUE])
def test_each_voxel_lies_where_its_slice_says(tmp_path, orientation):
    volume = read_volume(write_series(tmp_path, orientation=orientation))
    across, down = np.reshape(orientation, (2, 3))
    normal = np.cross(across, down)
    for i, j, k in ((0, 0, 0), (6, 5, 3), (2, 4, 1)):
        place = np.array([-10, -20, 30]) + 0.7 * i * across + 0.8 * j * down + 2.5 * k * normal
        np.testing.assert_allclose(LPS @ volume.grid.affine @ [i, j, k, 1], [*place, 1], atol=1e-6)
        index = tuple(int(n) for n in voxel_to_canonical(volume.grid, (i, j, k)))
        assert volume.array[index] == ramp()[k, j, i] - 1024


def test_files_are_ordered_by_position_whatever_their_names_and_numbers(tmp_path):
    volume = read_volume(write_series(tmp_path, each={k: {"InstanceNumber": 9 - k} for k in range(4)}))
    np.testing.assert_array_equal(volume.array, ramp() - 1024.0)
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.7))


def test_other_files_in_the_folder_are_passed_over(tmp_path):
    write_series(tmp_path)
    (tmp_path / "01.dcm").rename(tmp_path / "IM0001")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._02.dcm").write_bytes(b"a Mac's")
    (tmp_path / "folder").mkdir()
    scout = header(6, 7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImagePositionPatient=[0, 0, 0])
    scout.PixelData = bytes(84)
    save(scout, tmp_path / "scout.dcm")
    shot = header(6, 7, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", SeriesInstanceUID="1.2.3")  # secondary capture
    save(shot, tmp_path / "shot.dcm")
    directory = header(6, 7, SOPClassUID="1.2.840.10008.1.3.10")
    save(directory, tmp_path / "DICOMDIR")
    np.testing.assert_array_equal(read_volume(tmp_path).array, ramp() - 1024.0)


def test_one_file_stands_for_its_series_among_several(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", array=ramp()[:2] + 500, SeriesInstanceUID="1.2.3")
    for k, file in enumerate((tmp_path / "b").iterdir()):
        file.rename(tmp_path / "a" / f"other{k}")
    np.testing.assert_array_equal(read_volume(tmp_path / "a" / "01.dcm").array, ramp() - 1024.0)
    np.testing.assert_array_equal(read_volume(tmp_path / "a" / "other0").array, ramp()[:2] + 500 - 1024.0)


def test_slope_and_intercept_are_each_slices_own(tmp_path):
    scales = {k: {"RescaleSlope": 1 + k / 2, "RescaleIntercept": -1000 + k} for k in range(4)}
    volume = read_volume(write_series(tmp_path, each=scales))
    k = np.arange(4, dtype=np.float32)[:, None, None]
    np.testing.assert_array_equal(volume.array, ramp() * (1 + k / 2) - 1000 + k)


def test_padding_becomes_air(tmp_path):
    array = ramp()
    array[:, 0] = -2000  # -3024 HU
    volume = read_volume(write_series(tmp_path, array=array))
    assert (volume.array[:, 0] == -1024).all()
    np.testing.assert_array_equal(volume.array[:, 1:], ramp()[:, 1:] - 1024.0)


def test_signed_values_without_rescaling_are_hu(tmp_path):
    volume = read_volume(write_series(tmp_path, RescaleSlope=None, RescaleIntercept=None))
    np.testing.assert_array_equal(volume.array, ramp())


def test_another_modality_is_named_and_keeps_its_low_values(tmp_path):
    volume = read_volume(write_series(tmp_path, array=ramp() - 3000, Modality="MR", RescaleIntercept=0))
    assert volume.modality == "MR"
    np.testing.assert_array_equal(volume.array, ramp() - 3000)


def test_multi_frame_files_read_as_their_frames_lie(tmp_path):
    volume = read_volume(write_multi_frame(tmp_path / "a.dcm", order=[2, 0, 3, 1]))
    np.testing.assert_array_equal(volume.array, ramp() - 1024.0 + np.arange(4)[:, None, None])
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.7))
    np.testing.assert_array_equal(read_volume(tmp_path).array, volume.array)


def test_rle_reads(tmp_path):
    np.testing.assert_array_equal(read_volume(write_series(tmp_path, rle=True)).array, ramp() - 1024.0)


def test_jpeg_ls_reads(tmp_path):
    write_series(tmp_path)
    for file in tmp_path.iterdir():
        ds = pydicom.dcmread(file)
        ds.compress(JPEGLSLossless)
        ds.save_as(file)
    np.testing.assert_array_equal(read_volume(tmp_path).array, ramp() - 1024.0)


@pytest.mark.parametrize("codec", ["JPEG2000", "JPEG"])
def test_jpegs_of_ct_read_as_the_plain_series_does(tmp_path, codec):
    plain = real("dicom/ct-3slice")
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(codec)
    for file in plain.iterdir():
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.LoadPrivateTagsOff()
        writer.SetFileName(str(tmp_path / file.name))
        writer.Execute(sitk.Cast(reader.Execute(), sitk.sitkInt16))
        edit(tmp_path / file.name, SeriesInstanceUID="1.2.3", Modality="CT")
    packed = read_volume(tmp_path)
    np.testing.assert_array_equal(packed.array, read_volume(plain).array)  # ITK's writer is lossless
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1_000_000


def test_a_single_slice_is_as_thick_as_it_says(tmp_path):
    volume = read_volume(write_series(tmp_path / "a", array=ramp()[:1]))
    assert volume.spacing == pytest.approx((9, 0.8, 0.7))
    assert read_volume(write_series(tmp_path / "b", array=ramp()[:1], SpacingBetweenSlices=3)).spacing == pytest.approx(
        (3, 0.8, 0.7)
    )


def test_a_tilt_within_a_hundredth_stays_in_the_affine(tmp_path):
    positions = [(0, 0.02 * k, 2.5 * k) for k in range(4)]
    volume = read_volume(write_series(tmp_path, positions))
    np.testing.assert_allclose((LPS @ volume.grid.affine)[:3, 2], (0, 0.02, 2.5), atol=1e-9)


def test_labels_of_a_series_are_written_on_its_grid(tmp_path):
    volume = read_volume(write_series(tmp_path / "series", orientation=OBLIQUE))
    labels = (volume.array > -950).astype(np.int32)
    write_labels(tmp_path / "labels.nii.gz", labels, volume)
    image = nib.load(tmp_path / "labels.nii.gz")
    assert image.shape == SHAPE[::-1]
    np.testing.assert_allclose(image.affine, volume.grid.affine, rtol=1e-6, atol=1e-5)  # NIfTI-1 is float32
    np.testing.assert_array_equal(np.asarray(image.dataobj), (ramp() - 1024 > -950).transpose(2, 1, 0))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz", volume), labels)


def test_a_functional_group_may_be_shared(tmp_path):
    ds_path = write_multi_frame(tmp_path / "a.dcm")
    scale = Dataset()
    scale.RescaleSlope, scale.RescaleIntercept = 2, 5
    ds = pydicom.dcmread(ds_path)
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [scale]
    ds.save_as(ds_path)
    np.testing.assert_array_equal(read_volume(ds_path).array, ramp() * 2.0 + 5)
