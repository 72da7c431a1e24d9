"""NIfTI files for tests, real and made, and the one line of a refusal."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError

REALDATA = Path(os.environ.get("SAM2_3DMED_REALDATA", Path(__file__).parents[2] / "../shared/realdata"))
ORIENTATIONS = ("RAS", "LPS", "LIA", "PIR", "ASL", "SAR")
READABLE = (
    "nb_anatomical_bigendian_int16.nii",
    "nb_some_nan_float32_bigendian.nii",
    "nv_ct_head_gantry_shear.nii.gz",
    "nv_label_qform0_default.nii.gz",
    "nv_low_res_7x5x3.nii.gz",
    "nv_minimal_no_qs_form.nii.gz",
    "rjs_big_endian.nii.gz",
)


def real(name):
    path = REALDATA / name
    if not path.exists():
        pytest.skip(f"real data absent: {name} (set SAM2_3DMED_REALDATA)")
    return path


def make(path, array=None, affine=None, header=None, kind=nib.Nifti1Image):
    """Writes a NIfTI by nibabel itself and returns its path."""
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5) if array is None else array
    nib.save(kind(array, np.diag([-0.7, -0.8, 5, 1]) if affine is None else affine, header), path)
    return path


def refusal(function, *arguments):
    """The one-line message of the UserError that a call raises."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)
