"""Tiny datasets: an MSD task with the peculiarities of the published ones, as a folder and as an archive."""

import json
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.helpers.recorded_cases import SPLIT_IDS

IDS = ("pancreas_001", "pancreas_004", "pancreas_010")


def write_volume(path: Path, seed: int = 0, *, label: bool = False) -> None:
    """Write a volume of 6 x 5 x 4 voxels with the spacing of Task07."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 3 if label else 400, (6, 5, 4))
    image = nib.Nifti1Image(values.astype(np.uint8 if label else np.int16), np.diag([0.8, 0.8, 2.5, 1.0]))
    nib.save(image, path)


def write_msd_task(folder: Path) -> Path:
    """Write `Task07_Pancreas` with the peculiarities of the published task."""
    for seed, name in enumerate(IDS):
        write_volume(folder / "imagesTr" / f"{name}.nii.gz", seed)
        write_volume(folder / "labelsTr" / f"{name}.nii.gz", seed, label=True)
    write_volume(folder / "imagesTs" / "pancreas_002.nii.gz", 9)
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in reversed(IDS)]
    listed.insert(1, {"image": "./imagesTr/._pancreas_001.nii.gz", "label": "./labelsTr/._pancreas_001.nii.gz"})
    record = {
        "name": "Pancreas",
        "description": "Pancreas and cancer",
        "relase": "1.0 04/05/2018",  # sic
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "numTraining": len(IDS),
        "numTest": 1,
        "training": listed,
        "test": ["./imagesTs/pancreas_002.nii.gz"],  # plain strings, and no labels
    }
    (folder / "dataset.json").write_text(json.dumps(record))
    for file in [
        *folder.rglob("*.nii.gz"),
        folder / "dataset.json",
        folder / "imagesTr",
    ]:  # extended attributes of macOS
        (file.parent / f"._{file.name}").write_bytes(b"\x00\x05\x16\x07AppleDouble, not an image")
    return folder


def pack(folder: Path, archive: Path, root: str) -> Path:
    """Pack a folder under the name `root`; macOS adds a `._` file for the folder, too."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "._dataset.json", "._Task07_Pancreas")
        tar.add(folder, root)
    return archive


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_msd_task(tmp_path / "Task07_Pancreas")


@pytest.fixture
def archive(task: Path, tmp_path: Path) -> Path:
    return pack(task, tmp_path / "Task07_Pancreas.tar", "Task07_Pancreas")


@pytest.fixture
def patients(tmp_path: Path) -> str:
    """Two scans per patient."""
    file = tmp_path / "patients.csv"
    file.write_text("case,patient\n" + "".join(f"{name},P{i // 2}\n" for i, name in enumerate(SPLIT_IDS)))
    return str(file)


@pytest.fixture
def splits(tmp_path: Path) -> str:
    """Fold 1 does not contain all cases, which nnU-Net allows."""
    file = tmp_path / "splits_final.json"
    folds = [{"train": SPLIT_IDS[:8], "val": SPLIT_IDS[8:]}, {"train": SPLIT_IDS[:3], "val": SPLIT_IDS[5:6]}]
    file.write_text(json.dumps(folds))
    return str(file)
