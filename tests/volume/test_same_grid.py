"""Two files on one grid: rounding at 45 degrees, stored axis orders, formats, and the tolerance in millimetres."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own abbreviation
from scipy.spatial.transform import Rotation

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import (
    GRID_TOLERANCE_MM,
    LPS_TO_RAS,
    Grid,
    Volume,
    check_same_grid,
    largest_displacement_mm,
    to_canonical,
    to_frame_of,
)
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_nifti
from tests.helpers.dicom_files import write_series
from tests.helpers.nifti_files import make

SHAPE = (6, 7, 5)
IDS = np.arange(1, 1 + np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)  # each voxel has its own value
ANGLES = (45.0, 45.0 + 1e-6, 45.0 - 1e-6, 45.01, 44.99, 135.0, -45.0)


def turned(axis: str, degrees: float, spacing: tuple[float, float, float] = (0.7, 0.8, 2.5)) -> np.ndarray:
    """Return the affine of a grid that is turned about an axis of the patient."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = -120.5, 87.25, -310.0
    return affine


def rounded(affine: np.ndarray, how: str) -> np.ndarray:
    """Return an affine as other software may store it."""
    if how == "float32":
        return affine.astype(np.float32).astype(np.float64)
    if how == "micrometres":  # an origin with three decimals
        return np.column_stack([affine[:, :3], np.round(affine[:, 3] + 0.00037, 3)])
    return affine + np.vstack([np.random.default_rng(int(how)).uniform(-1e-7, 1e-7, (3, 4)), np.zeros(4)])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Write a file without the code under test."""
    if path.suffix == ".gz":
        return make(path, voxels, affine)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path


def stored_in(order: tuple[int, ...], flips: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same voxels with axes in another order and direction, and their affine."""
    change = np.zeros((4, 4))  # from the new index to the old one
    for new, old in enumerate(order):
        change[old, new] = -1 if new in flips else 1
        change[old, 3] = SHAPE[old] - 1 if new in flips else 0
    change[3, 3] = 1
    return np.flip(IDS.transpose(order), flips), affine @ change


@pytest.mark.parametrize("how", ["float32", "micrometres", "0", "1", "2"])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rounding_at_45_degrees_does_not_move_labels_to_other_voxels(axis: str, how: str):
    for degrees, reverse in itertools.product(ANGLES, (False, True)):
        affine = turned(axis, degrees)
        first, second = (affine, rounded(affine, how))[:: -1 if reverse else 1]
        image, labels = Grid(SHAPE, first), Grid(SHAPE, second)
        found = to_frame_of(image, to_canonical(IDS, labels), labels)
        np.testing.assert_array_equal(found, to_canonical(IDS, image))


def test_the_canonical_order_is_stable_under_rounding_at_exactly_45_degrees():
    for axis in "xyz":
        affine = turned(axis, 45.0)
        for how in ("float32", *map(str, range(50))):
            assert Grid(SHAPE, rounded(affine, how)).canonical_shape == Grid(SHAPE, affine).canonical_shape


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_labels_in_any_axis_order_and_direction_are_on_their_voxels_at_45_degrees(axis: str):
    affine = turned(axis, 45.0)
    image = Grid(SHAPE, rounded(affine, "float32"))
    for order in itertools.permutations(range(3)):
        for flips in ((), (0,), (1, 2), (0, 1, 2)):
            voxels, other = stored_in(order, flips, affine)
            labels = Grid(voxels.shape, other)
            found = to_frame_of(image, to_canonical(voxels, labels), labels)
            np.testing.assert_array_equal(found, to_canonical(IDS, image))


def test_a_cube_with_equal_spacing_is_matched_by_position_and_not_by_its_shape():
    affine = turned("z", 45.0, (1.0, 1.0, 1.0))
    voxels = np.arange(64).reshape(4, 4, 4)
    image = Grid(voxels.shape, affine)
    swapped = affine[:, [1, 0, 2, 3]]
    labels = Grid(voxels.shape, swapped)
    found = to_frame_of(image, to_canonical(voxels.transpose(1, 0, 2), labels), labels)
    np.testing.assert_array_equal(found, to_canonical(voxels, image))


@pytest.mark.parametrize("labels", ["labels.nii.gz", "labels.nrrd", "labels.mha"])
@pytest.mark.parametrize("image", ["image.nii.gz", "image.nrrd", "image.mha"])
def test_image_and_labels_of_any_two_formats_agree_on_an_oblique_grid(tmp_path: Path, image: str, labels: str):
    for axis in "xyz":
        volume = read_volume(save(tmp_path / image, IDS, turned(axis, 45.0)))
        voxels, affine = stored_in((1, 2, 0), (1,), turned(axis, 45.0))
        np.testing.assert_array_equal(read_labels(save(tmp_path / labels, voxels, affine), volume), volume.array)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_dicom_series_and_a_nifti_mask_agree_at_45_degrees(tmp_path: Path, axis: str):
    turn = Rotation.from_euler(axis, 45, degrees=True).as_matrix()
    orientation = [float(f"{x:.6f}") for x in (*turn[:, 0], *turn[:, 1])]  # as many scanners write them
    series = write_series(tmp_path / "series", orientation=orientation)
    volume = read_volume(series)
    k, rows, columns = 4, 6, 7  # of `write_series`
    lps = np.eye(4)
    lps[:3, :3] = turn * (0.7, 0.8, 2.5)
    lps[:3, 3] = -10, -20, 30
    ids = np.arange(k * rows * columns, dtype=np.int16).reshape(k, rows, columns).transpose(2, 1, 0)
    mask = make(tmp_path / "mask.nii.gz", ids, LPS_TO_RAS @ lps)
    np.testing.assert_array_equal(read_labels(mask, volume), volume.array + 1024)


def test_a_micrometre_is_accepted_and_a_larger_difference_is_named_in_mm():
    affine = turned("x", 20.0)
    image = Grid(SHAPE, affine, "ct.nii.gz")
    moved = affine.copy()
    moved[:3, 3] += (0.001, -0.001, 0.001)
    check_same_grid(Grid(SHAPE, moved), image)
    for shift in (0.05, 0.5, 40.0):
        moved = affine.copy()
        moved[1, 3] += shift
        with pytest.raises(
            UserError, match=rf"mask\.mha .*ct\.nii\.gz.* differ by up to {shift:g} mm .*at most 0\.01 mm"
        ):
            check_same_grid(Grid(SHAPE, moved, "mask.mha"), image)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_shift_at_45_degrees_is_named_in_mm_and_not_as_another_shape(axis: str):
    affine = turned(axis, 45.0)
    for change in (1e-3, -1e-3):  # enough to choose another canonical order
        moved = turned(axis, 45.0 + change)
        moved[2, 3] += 0.3
        for order in ([0, 1, 2, 3], [1, 2, 0, 3]):
            shape = tuple(SHAPE[i] for i in order[:3])
            with pytest.raises(UserError, match=r"differ by up to 0\.3\d* mm"):
                check_same_grid(Grid(shape, moved[:, order]), Grid(SHAPE, affine))


def test_the_tolerance_is_the_displacement_of_the_outermost_corner_in_mm():
    wide = (512, 512, 100)
    affine = np.diag([0.7, 0.7, 5.0, 1.0])
    for degrees, allowed in ((1e-3, True), (3e-3, False)):
        other = affine.copy()
        other[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ affine[:3, :3]
        displacement = largest_displacement_mm(wide, affine, other)
        assert displacement == pytest.approx(np.radians(degrees) * np.hypot(0.7 * 511.5, 0.7 * 511.5), rel=1e-3)
        assert (displacement <= GRID_TOLERANCE_MM) is allowed
        try:
            check_same_grid(Grid(wide, other), Grid(wide, affine))
        except UserError:
            assert not allowed
        else:
            assert allowed


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_grid_made_from_a_canonical_one_keeps_its_axes(axis: str):
    for degrees in ANGLES:
        image = Grid(SHAPE, turned(axis, degrees))
        made = Grid(image.canonical_shape, image.canonical_affine, is_canonical=True)
        assert made.canonical_shape == image.canonical_shape
        np.testing.assert_array_equal(made.canonical_affine, image.canonical_affine)
        Volume(np.zeros(image.canonical_shape, np.float32), made)
        check_same_grid(made, image)


def test_a_sform_that_is_off_by_float32_rounding_is_written_with_its_qform(tmp_path: Path):
    write_nifti(tmp_path / "a.nii", IDS, turned("y", 45.0))
    header = nib.load(tmp_path / "a.nii").header
    assert int(header["qform_code"]) == int(header["sform_code"]) == 1
    assert largest_displacement_mm(SHAPE, header.get_qform(), turned("y", 45.0)) < GRID_TOLERANCE_MM
