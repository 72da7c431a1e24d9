"""The slices of images that come without an affine."""

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.nninteractive.axes import guessed_affine, guessed_slice_axis, parse_spacing
from sam2_3dmed_jax.volume.geometry import Grid


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((40, 512, 512), (5, 0.8, 0.8), 0),
        ((512, 512, 40), (0.8, 0.8, 5), 2),
        ((512, 40, 512), (1, 1, 1), 1),
        ((512, 512, 200), (1, 1, 1), 2),
        ((160, 240, 300), (1, 1, 1), 0),
        ((64, 64, 64), (1, 1, 1), 0),
    ],
)
def test_slices_are_coarse_or_square(shape, spacing, axis):
    assert guessed_slice_axis(shape, spacing) == axis


@pytest.mark.parametrize(("shape", "order"), [((4, 6, 5), (0, 1, 2)), ((5, 6, 4), (2, 1, 0))])
def test_rows_and_columns_of_z_y_x_and_x_y_z_are_recognised(shape, order):
    grid = Grid(shape, guessed_affine(shape, [3.0 if extent == 4 else 1.0 for extent in shape]))
    assert grid.canonical_shape == (4, 6, 5)
    np.testing.assert_array_equal(np.argsort(grid.transform[:, 0]), order)
    assert grid.spacing == (3.0, 1.0, 1.0)


@pytest.mark.parametrize("spacing", [(1, 2), "abc", (0, 1, 1), (float("nan"), 1, 1), 5, (1, 1, "x"), (10**400, 1, 1)])
def test_a_spacing_of_another_form_is_refused(spacing):
    with pytest.raises(UserError, match="spacing"):
        parse_spacing({"spacing": spacing})
    assert parse_spacing({}) == (1.0, 1.0, 1.0)


def test_negative_spacings_of_napari_nifti_are_superior_anterior_right():
    spacing = parse_spacing({"spacing": [-3.0, -0.7, -0.8]})
    assert guessed_slice_axis((4, 6, 5), spacing) == 0
    assert nib.aff2axcodes(guessed_affine((4, 6, 5), spacing)) == ("S", "A", "R")
    assert nib.aff2axcodes(guessed_affine((4, 6, 5), (3.0, 0.7, 0.8))) == ("S", "P", "L")
