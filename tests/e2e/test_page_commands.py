"""The commands of documentation pages run, in order, with small files and a small checkpoint under the names they use.

Left out: `train`, `convert`, `plan` and `demo`, which have their own tests with other settings, and the gallery, which
`tools/make_gallery.py` runs.
"""

import contextlib
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax import save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.volume.io import write_nifti
from tests.helpers.scans import small_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"train", "convert", "plan", "demo"}
FILES = {  # what the last command of a page writes
    "how-to/read-a-voxel.md": "segmentation.json",
    "how-to/check.md": "planes.png",
    "how-to/mr-and-pet.md": "clips.png",
    "how-to/from-nnunet.md": "scores/both/comparison.csv",
}
CHECKPOINTS = "sam2.1_hiera_tiny", "checkpoints/tiny", "runs/spleen/final"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT, an MR, a dataset in nnU-Net's layout with predictions, and checkpoints."""
    folder = tmp_path_factory.mktemp("pages")
    save_model(small_model(), folder / CHECKPOINTS[0])
    for name in CHECKPOINTS[1:]:
        shutil.copytree(folder / CHECKPOINTS[0], folder / name)
    noise = np.random.default_rng(0).normal(40, 100, (16, 12, 8)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    for name in ("CT.nii.gz", "MR.nii.gz"):
        write_nifti(folder / name, noise.astype(np.int16), np.diag([-0.8, -0.8, 3.0, 1.0]))

    script = ROOT / "experiments" / "paper" / "export_nnunet.py"
    spec = importlib.util.spec_from_file_location("export_nnunet", script)
    export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(export)
    phantoms = write_phantom_dataset(folder / "Task09_Spleen", 5, 0, "spleen", matrix=32)
    raw = export.export(export.Export(str(phantoms), str(folder / "nnUNet_raw"), 9, "Spleen"))
    assert len(read_dataset(raw).cases) == 5
    shutil.copytree(raw / "labelsTr", folder / "nnunet" / "crossval")
    return folder


def commands(page: str) -> list[list[str]]:
    """Return the words of the `sam2-3dmed` lines of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["sam2-3dmed"] and words[1] not in LEFT_OUT]


@pytest.mark.parametrize("page", FILES)
def test_the_commands_of_a_page_run_in_order(page: str, folder: Path):
    lines = commands(page)
    assert lines
    with contextlib.chdir(folder):
        Path(FILES[page]).unlink(missing_ok=True)
        for words in lines:
            assert main(words) == 0, words
        assert Path(FILES[page]).is_file()
