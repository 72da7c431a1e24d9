"""One voxel of a real file as each viewer shows it: the prompt is the same, whatever the order of the axes."""

import nibabel
import numpy as np
import pytest

from sam2_3dmed_jax.prompts.flags import PromptFlags, gather_prompts
from sam2_3dmed_jax.volume.io import read_volume
from tests.helpers.nifti_files import ORIENTATIONS, real

VOXEL = np.array([31, 12, 25])  # counted from 0, in the file's own order of axes


def text(numbers: np.ndarray) -> str:
    return ",".join(f"{number:.9g}" for number in numbers)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_voxel_of_a_real_file_is_the_same_click_in_each_convention_of_viewers(name: str):
    sitk = pytest.importorskip("SimpleITK")
    path = real(f"orientations/{name}.nii.gz")
    volume = read_volume(path)
    ras = nibabel.load(path).affine @ (*VOXEL, 1)  # nibabel, NiiVue, FSLeyes
    lps = np.array(sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint(VOXEL.tolist()))  # DICOM, ITK
    itk_snap = VOXEL + 1
    given = {
        "point": (text(VOXEL), text(itk_snap - 1)),
        "point_mm": (text(ras[:3]), text(lps * (-1, -1, 1))),
    }
    clicks = gather_prompts(PromptFlags(**given), volume).prompts
    assert len(clicks) == 4
    expected = nibabel.as_closest_canonical(nibabel.load(path))  # the voxel's place in RAS, by nibabel alone
    i, j, k = np.linalg.solve(expected.affine, ras)[:3]
    for click in clicks:
        ((x, y),) = click.points
        # canonical slices go up, rows to posterior and columns to the left; 1e-3: float32 headers
        np.testing.assert_allclose(
            (x, y, click.slice), (expected.shape[0] - 1 - i, expected.shape[1] - 1 - j, k), rtol=0, atol=1e-3
        )
