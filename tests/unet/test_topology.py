"""Strides and kernels follow patch and spacing by nnU-Net's rule."""

import pytest

from sam2_3dmed_jax.config import UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.unet.topology import unet_stages


def test_thick_slices_are_halved_in_plane_first_and_have_flat_kernels_until_then():
    stages = unet_stages(UNetConfig(patch=(32, 192, 192), spacing=(5.0, 0.8, 0.8)))
    assert [stage.stride for stage in stages] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert [stage.kernel for stage in stages] == [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert [stage.features for stage in stages] == [32, 64, 128, 256, 320, 320]


def test_isotropic_patches_are_halved_along_all_axes_down_to_four_voxels():
    stages = unet_stages(UNetConfig(patch=(32, 32, 32), spacing=(1.0, 1.0, 1.0)))
    assert [stage.stride for stage in stages] == [(1, 1, 1), *[(2, 2, 2)] * 3]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch": (30, 64, 64), "spacing": (1.0, 1.0, 1.0)}, r"model\.patch: 30 x 64 x 64 .*; use 32 64 64"),
        ({"spacing": (1.0, 0.0, 1.0)}, r"model\.spacing"),
        ({"blocks": (1,)}, r"model\.blocks"),
    ],
)
def test_the_message_about_wrong_settings_names_the_field_and_the_fix(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        unet_stages(UNetConfig(**changes))
