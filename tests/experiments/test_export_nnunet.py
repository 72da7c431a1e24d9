"""Export to nnU-Net: the copy reads back as the dataset, with our folds."""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.split_choice import choose_split
from sam2_3dmed_jax.data.split_files import read_splits
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.phantom import write_phantom_dataset

FILE = Path(__file__).resolve().parents[2] / "experiments" / "paper" / "export_nnunet.py"
spec = importlib.util.spec_from_file_location("export_nnunet", FILE)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "Task09_Spleen", 5, 0, "pancreas", matrix=32)


def test_the_copy_reads_back_with_its_labels_images_and_our_folds(data: Path, tmp_path: Path):
    folder = script.export(script.Export(str(data), str(tmp_path), 9, "Spleen"))
    assert folder == tmp_path / "Dataset009_Spleen"
    ours, theirs = read_dataset(data), read_dataset(folder)
    assert theirs.labels == ours.labels and [c.id for c in theirs.cases] == [c.id for c in ours.cases]
    assert not theirs.warnings
    for one, other in zip(ours.cases, theirs.cases, strict=True):
        for part in ("image", "label"):
            a, b = (nibabel.load(getattr(case, part)) for case in (one, other))
            assert np.array_equal(a.dataobj, b.dataobj) and np.array_equal(a.affine, b.affine)
    ids = [case.id for case in ours.cases]
    assert read_splits(folder / "splits_final.json") == [choose_split(ids, DataConfig(fold=fold)) for fold in range(5)]


def test_an_existing_folder_is_not_changed(data: Path, tmp_path: Path):
    options = script.Export(str(data), str(tmp_path), 9, "Spleen")
    script.export(options)
    with pytest.raises(UserError, match="exists already"):
        script.export(options)
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset009_Spleen"]
