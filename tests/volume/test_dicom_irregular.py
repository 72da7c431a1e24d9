"""Series without a regular grid: one line that lists the places, and what --resample makes of them."""

import shutil

import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed_jax.volume.image_file import LIMIT_VARIABLE
from sam2_3dmed_jax.volume.io import read_volume
from tests.helpers.dicom_files import AXIAL, ramp, write_series
from tests.helpers.nifti_files import refusal

LPS = np.diag([-1, -1, 1, 1])
HEIGHTS = (0.0, 2.5, 5.0, 10.0, 12.5)  # one slice is missing at 7.5 mm
TILT = np.tan(np.radians(18.5))


def stacked(heights, tilt=0.0):
    return [(0.0, tilt * z, z) for z in heights]


def linear(positions, shape=(5, 24, 20)):
    """Stored values of a CT that is a linear function of LPS mm, so that linear interpolation is exact."""
    k, j, i = np.indices(shape).astype(float)
    place = np.array(positions)[:, :, None, None]
    x, y, z = place[:, 0] + 0.7 * i, place[:, 1] + 0.8 * j, place[:, 2] + 0 * k
    return np.rint(100 * (x + 2 * y + 3 * z)).astype(np.int16)


def test_a_gap_is_refused_with_its_place(tmp_path):
    message = refusal(read_volume, write_series(tmp_path, stacked(HEIGHTS), ramp((5, 6, 7))))
    assert str(tmp_path) in message
    assert "gaps between slices, expected 2.5 mm as in most places, at positions along the normal 5 to 10 mm" in message
    assert "--resample" in message


def test_uneven_spacing_is_refused_beyond_a_hundredth(tmp_path):
    message = refusal(read_volume, write_series(tmp_path / "a", stacked((0, 2.5, 5.0, 7.55)), ramp()))
    assert "uneven spacing between slices, expected 2.5 mm" in message
    assert "5 to 7.55 mm" in message
    assert "--resample" in message
    assert read_volume(write_series(tmp_path / "b", stacked((0, 2.5, 5.0, 7.51)), ramp())).array.shape[0] == 4


def test_small_deviations_that_add_up_are_refused(tmp_path):
    heights = np.concatenate([np.arange(30) * 2.5, 29 * 2.5 + np.arange(1, 31) * 2.52])
    message = refusal(read_volume, write_series(tmp_path, stacked(heights), ramp((60, 2, 3))))
    assert "off a regular spacing" in message


def test_tilt_is_refused_beyond_a_hundredth_with_the_positions(tmp_path):
    message = refusal(read_volume, write_series(tmp_path, stacked((0, 2.5, 5, 7.5), TILT), ramp()))
    assert "tilted slices: from one to the next they move by up to 0.8365 mm" in message
    assert "[0.0, 0.836, 2.5]" in message
    assert "--resample" in message


def test_duplicates_are_refused_with_their_files_and_place(tmp_path):
    write_series(tmp_path, stacked((0, 2.5, 2.5, 5)), ramp())
    message = refusal(read_volume, tmp_path)
    assert "several slices at one position" in message
    assert "[0.0, 0.0, 2.5]" in message
    assert "03.dcm" in message
    assert "02.dcm" in message
    assert message == refusal(lambda: read_volume(tmp_path, resample=True))


def test_two_phases_in_one_series_are_refused_on_oblique_slices_too(tmp_path):
    across = np.array([1, 0.2, 0.1]) / np.linalg.norm([1, 0.2, 0.1])
    down = np.cross([0.3, -0.1, 1], across) / np.linalg.norm(np.cross([0.3, -0.1, 1], across))
    orientation = (*across, *down)
    write_series(tmp_path / "a", orientation=orientation)
    write_series(tmp_path / "b", orientation=orientation, array=ramp() + 1)
    for file in (tmp_path / "b").iterdir():
        file.rename(tmp_path / "a" / f"late{file.name}")
    assert "several slices at one position, 4 times" in refusal(read_volume, tmp_path / "a")


def test_a_file_copied_twice_is_refused_unless_resampling_and_then_counts_once(tmp_path):
    write_series(tmp_path)
    shutil.copy(tmp_path / "02.dcm", tmp_path / "copy.dcm")
    assert "several slices at one position" in refusal(read_volume, tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, resample=True).array, ramp() - 1024.0)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9998, 0.02]}, "mixes ImageOrientationPatient"),
        ({"PixelSpacing": [0.8, 0.75]}, "mixes PixelSpacing"),
        ({"Rows": 3, "Columns": 14}, "mixes Rows and Columns"),
    ],
)
def test_slices_of_two_kinds_are_refused_with_the_odd_ones_named(tmp_path, tags, reason):
    message = refusal(read_volume, write_series(tmp_path, each={2: tags}))
    assert reason in message
    assert "02.dcm" in message
    assert "[-10.0, -20.0, 35.0]" in message
    assert "--resample" in message


def test_resampling_fills_a_gap_by_interpolation_and_leaves_the_slices_that_are_there(tmp_path):
    stored = linear(stacked(HEIGHTS))
    volume = read_volume(write_series(tmp_path, stacked(HEIGHTS), stored), resample=True)
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.7))
    np.testing.assert_array_equal(volume.array[[0, 1, 2, 4, 5]], stored - 1024.0)
    np.testing.assert_allclose(volume.array[3], (stored[2] + stored[3]) / 2 - 1024.0, atol=1e-3)  # float32


def test_resampling_takes_the_finest_spacing_and_keeps_both_ends(tmp_path):
    heights = (0.0, 1.25, 2.5, 5.0, 7.6)
    stored = linear(stacked(heights))
    volume = read_volume(write_series(tmp_path, stacked(heights), stored), resample=True)
    assert volume.array.shape[0] == 7
    assert volume.spacing[0] == pytest.approx(7.6 / 6)
    z = np.linspace(0, 7.6, 7)
    np.testing.assert_allclose(
        volume.array[:, 5, 4], 100 * (0.7 * 4 + 2 * 0.8 * 5 + 3 * z) - 1024, atol=0.51
    )  # rounded


def test_resampling_makes_a_tilted_series_orthogonal_and_moves_no_voxel(tmp_path):
    positions = stacked(np.arange(5) * 2.5, TILT)
    volume = read_volume(write_series(tmp_path, positions, linear(positions)), resample=True)
    edges = volume.grid.affine[:3, :3] / np.linalg.norm(volume.grid.affine[:3, :3], axis=0)
    np.testing.assert_allclose(edges.T @ edges, np.eye(3), atol=1e-12)
    assert volume.grid.shape == (20, 24 + int(np.ceil(10 * TILT / 0.8)), 5)
    i, j, k = np.indices(volume.grid.shape)
    x, y, z, _ = np.einsum("ab,bijk->aijk", LPS @ volume.grid.affine, np.stack([i, j, k, np.ones_like(i)]))
    expected = 100 * (x + 2 * y + 3 * z) - 1024
    found = volume.array.transpose(2, 1, 0)
    covered = (y >= TILT * z) & (y <= TILT * z + 0.8 * 23)
    inside = ndimage.binary_erosion(covered, np.ones((1, 3, 1)), border_value=1)
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.51)  # stored values are rounded
    # A voxel that is less than one off the slice's border holds a blend of it with air.
    assert (found[~ndimage.binary_dilation(covered, np.ones((1, 3, 1)))] == -1024).all()


def test_resampling_leaves_a_regular_series_as_it_is(tmp_path):
    plain = read_volume(write_series(tmp_path))
    again = read_volume(tmp_path, resample=True)
    np.testing.assert_array_equal(again.array, plain.array)
    np.testing.assert_array_equal(again.grid.affine, plain.grid.affine)


def test_padding_does_not_bleed_into_its_neighbours_when_resampled(tmp_path):
    array = np.full((5, 6, 7), 1024, np.int16)
    array[2] = -2000  # -3024 HU, below the gap
    volume = read_volume(write_series(tmp_path, stacked(HEIGHTS), array), resample=True)
    np.testing.assert_array_equal(volume.array[3], -512)


def test_another_modality_is_surrounded_by_its_smallest_value(tmp_path):
    positions = stacked(np.arange(4) * 2.5, TILT)
    tags = {"Modality": "MR", "RescaleIntercept": 7}
    volume = read_volume(write_series(tmp_path, positions, ramp(), **tags), resample=True)
    assert volume.array.min() == 7


def test_a_resampled_volume_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, str(4 * 100 * 42 / 2**30))
    write_series(tmp_path, stacked((0, 0.05, 100, 200)), ramp(), orientation=AXIAL)
    assert "GiB in memory" in refusal(lambda: read_volume(tmp_path, resample=True))
