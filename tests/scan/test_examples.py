"""The Python blocks of README and of the documentation run, with a small checkpoint under the name that they use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax import save_model
from sam2_3dmed_jax.volume.io import write_nifti
from tests.helpers.scans import small_model

ROOT = Path(__file__).resolve().parents[2]


def python_blocks(page: str) -> str:
    """Return the Python blocks of a page, one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks, f"{page} has no Python block"
    return "\n".join(blocks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CT, and a checkpoint under the name of published weights, which is therefore not downloaded."""
    folder = tmp_path_factory.mktemp("examples")
    save_model(small_model(), folder / "sam2.1_hiera_tiny")
    noise = np.random.default_rng(0).normal(40, 100, (16, 12, 8)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    write_nifti(folder / "CT.nii.gz", noise.astype(np.int16), np.diag([-0.8, -0.8, 3.0, 1.0]))
    organs = np.zeros(noise.shape, np.uint8)
    organs[8:40, 8:40, 8:20], organs[44:60, 8:24, 10:16] = 1, 2
    write_nifti(folder / "organs.nii.gz", organs, np.diag([-0.8, -0.8, 3.0, 1.0]))
    return folder


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("README.md", "[0-9]+ voxels"),
        ("docs/reference/python.md", "dice"),
        ("docs/how-to/read-a-voxel.md", ""),
        pytest.param("docs/how-to/automatic-start.md", "", marks=pytest.mark.long),
        pytest.param("docs/how-to/python.md", "click: voxel x = 999 is outside CT.nii.gz", marks=pytest.mark.slow),
    ],
)
def test_the_python_blocks_of_a_page_run(page: str, printed: str, folder: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", python_blocks(page)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(printed, process.stdout)
