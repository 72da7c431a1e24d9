"""Points in voxels and in millimetres, for files with random affines."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sam2_3dmed_jax.prompts.flags import PromptFlags, gather_prompts
from sam2_3dmed_jax.volume.io import read_volume, write_nifti

SHAPE = (5, 7, 6)


def affine_of(seed: int) -> np.ndarray:
    """Return an affine with rotated, permuted, flipped and sheared axes of unequal spacing."""
    rng = np.random.default_rng(seed)
    edges = Rotation.random(rng=rng).as_matrix() if seed % 2 else np.eye(3)
    edges = edges[:, rng.permutation(3)] * rng.choice([-1, 1], 3) * rng.uniform(0.4, 5.0, 3)
    affine = np.eye(4)
    affine[:3, :3] = edges @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


@pytest.mark.parametrize("seed", range(40))
def test_points_in_voxels_and_in_mm_are_on_the_given_voxel_for_random_affines(tmp_path: Path, seed: int):
    voxel = tuple(np.random.default_rng(seed).integers(0, SHAPE).tolist())
    path = tmp_path / "scan.nii"
    stored = np.zeros(SHAPE, np.int16)
    stored[voxel] = 1000
    write_nifti(path, stored, affine_of(seed))
    volume = read_volume(path)
    # The affine is read from the file, which stores it in float32.
    mm = volume.grid.affine @ [*voxel, 1.0]
    texts = ",".join(map(str, voxel)), ",".join(repr(float(x)) for x in mm[:3])
    for flags in (PromptFlags(point=texts[:1]), PromptFlags(point_mm=texts[1:])):
        (prompt,) = gather_prompts(flags, volume).prompts
        ((w, h),) = prompt.points
        assert (w, h) == pytest.approx((round(w), round(h)), abs=1e-3)  # millimetres are rounded to 1e-4 voxels
        assert volume.array[prompt.slice, round(h), round(w)] == 1000
