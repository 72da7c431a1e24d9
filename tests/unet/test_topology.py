"""Strides and kernels follow patch and spacing as nnU-Net's do."""

import pytest

from sam2_3dmed_jax.config import UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.unet.topology import stages_of


def test_thick_slices_are_halved_in_plane_first_and_their_kernels_are_flat_until_then():
    stages = stages_of(UNetConfig(patch=(32, 192, 192), spacing=(5.0, 0.8, 0.8)))
    assert [stage.stride for stage in stages] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert [stage.kernel for stage in stages] == [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert [stage.features for stage in stages] == [32, 64, 128, 256, 320, 320]


def test_isotropic_voxels_are_halved_alike_until_a_map_is_four_voxels_wide():
    stages = stages_of(UNetConfig(patch=(32, 32, 32), spacing=(1.0, 1.0, 1.0)))
    assert [stage.stride for stage in stages] == [(1, 1, 1), *[(2, 2, 2)] * 3]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch": (30, 64, 64), "spacing": (1.0, 1.0, 1.0)}, r"model\.unet\.patch: 30 x 64 x 64 .*; use 32 64 64"),
        ({"spacing": (1.0, 0.0, 1.0)}, r"model\.unet\.spacing"),
        ({"blocks": (1,)}, r"model\.unet\.blocks"),
    ],
)
def test_settings_that_make_no_network_are_refused_with_what_would(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        stages_of(UNetConfig(**changes))
