"""Resampling keeps every point of the patient where it is, and labels whole."""

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.resample import parse_spacing, regrid, resample_labels, resample_values

AFFINE = np.array([[0.1, -0.2, -0.8, 40], [0.3, -0.9, 0.1, 50], [2.9, 0.2, 0.1, -30], [0, 0, 0, 1.0]])
SHAPE = (12, 30, 26)


def positions(shape, affine):
    """`[D, H, W, 3]` RAS millimetres of each voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("wanted", [(1.5, None, None), (None, 0.5, 0.6), (5.0, 1.7, 1.3), (1.0, 1.0, 1.0)])
def test_values_that_encode_their_coordinates_still_do_so(wanted):
    plan = regrid(SHAPE, AFFINE, wanted)
    for axis in range(3):
        found = resample_values(positions(SHAPE, AFFINE)[..., axis].astype(np.float32), plan)
        assert found.shape == plan.shape
        expected = positions(plan.shape, plan.affine)[..., axis]
        inner = tuple(slice(2, -2) for _ in range(3))  # the border repeats its outermost voxel
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-3)  # float32 of some 100 mm
    spacing = np.linalg.norm(plan.affine[:3, :3], axis=0)
    own = np.linalg.norm(AFFINE[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, [w or o for w, o in zip(wanted, own, strict=True)])
    middle = [*((np.array(n) - 1) / 2 for n in (SHAPE, plan.shape))]
    np.testing.assert_allclose((AFFINE @ [*middle[0], 1])[:3], (plan.affine @ [*middle[1], 1])[:3], atol=1e-9)


@pytest.mark.parametrize("wanted", [(1.5, 0.6, 0.6), (5.0, 1.2, 1.2), (None, 1.3, None)])
def test_labels_stay_where_they_are_and_keep_their_size(wanted):
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 6:24, 5:15], labels[3:9, 6:24, 15:22], labels[5:8, 10:15, 8:12] = 3, 200, 7
    plan = regrid(SHAPE, AFFINE, wanted)
    found = resample_labels(labels, plan)
    assert set(np.unique(found)) == {0, 3, 7, 200}
    for value in (3, 7, 200):
        before = positions(SHAPE, AFFINE)[labels == value]
        after = positions(plan.shape, plan.affine)[found == value]
        voxel = np.linalg.norm(plan.affine[:3, :3], axis=0)
        assert np.linalg.norm(before.mean(0) - after.mean(0)) < 0.5 * np.linalg.norm(voxel)
        change = len(after) * np.linalg.det(plan.affine[:3, :3]) / (len(before) * np.linalg.det(AFFINE[:3, :3]))
        assert change == pytest.approx(1, abs=0.35)  # the small one spans three slices of 3 mm


def test_the_voxels_of_labels_are_those_of_the_strongest_mask():
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 6:24, 5:15], labels[5:8, 10:15, 8:19] = 3, 7
    plan = regrid(SHAPE, AFFINE, (2.0, 1.1, 0.5))
    masks = np.stack([resample_values((labels == value).astype(np.float32), plan) for value in (0, 3, 7)])
    clear = np.sort(masks, axis=0)[-1] - np.sort(masks, axis=0)[-2] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(resample_labels(labels, plan)[clear], np.array([0, 3, 7])[masks.argmax(0)][clear])


def test_the_spacing_that_is_there_changes_no_bit():
    own = np.linalg.norm(AFFINE[:3, :3], axis=0).astype(np.float32)
    plan = regrid(SHAPE, AFFINE, tuple(map(float, own)))
    assert plan.shape == SHAPE and plan.step == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(plan.affine, AFFINE)


@pytest.mark.parametrize(
    ("text", "spacing"), [("5,-,0", (5.0, None, None)), (" 1.5 , 2,3", (1.5, 2.0, 3.0)), ("0,0,0", (None, None, None))]
)
def test_a_spacing_is_read(text, spacing):
    assert parse_spacing(text) == spacing


@pytest.mark.parametrize("text", ["", "5", "1,2", "1,2,3,4", "a,b,c", "-1,1,1", "inf,1,1", "nan,1,1", "1e-400,,"])
def test_what_is_no_spacing_is_refused(text):
    with pytest.raises(UserError, match="is not a spacing; give dz,dy,dx in mm"):
        parse_spacing(text)
