"""Datasets of image files written with nibabel, runs of `prepare`, and the expected contents of shards."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
from sam2_3dmed_jax.data.prepared import read_prepared

LABELS = {"0": "background", "1": "organ", "2": "tumour"}
AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])


def values_and_labels(shape=(9, 8, 7), seed=0):
    """A CT of noise, and labels of a box of organ with a tumour in it; in file order."""
    values = np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)
    labels = np.zeros(shape, np.uint8)
    labels[2:7, 2:6, 1:6], labels[3:5, 3:5, 2:4] = 1, 2
    return values, labels


def add_case(folder: Path, name: str, values, labels, affine=AFFINE, label_affine=None, **record) -> Path:
    """Write a case and add it to `dataset.json`, together with the fields of `record`."""
    for part, array, where in (("imagesTr", values, affine), ("labelsTr", labels, label_affine)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine if where is None else where), folder / part / f"{name}.nii.gz")
    return list_case(folder, name, **record)


def link_case(folder: Path, name: str, image: Path, label: Path, **record) -> Path:
    """Add a case whose files are symbolic links."""
    for part, file in (("imagesTr", image), ("labelsTr", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{name}.nii.gz").symlink_to(file)
    return list_case(folder, name, **record)


def list_case(folder: Path, name: str, **record) -> Path:
    """Add a case to `dataset.json`."""
    file = folder / "dataset.json"
    existing = (
        json.loads(file.read_text()) if file.exists() else {"name": folder.name, "labels": LABELS, "training": []}
    )
    files = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
    file.write_text(json.dumps({**existing, **record, "training": [*existing["training"], files]}))
    return folder


def some_cases(folder: Path, count: int, shape=(9, 8, 7)) -> Path:
    for n in range(count):
        add_case(folder, f"case_{n}", *values_and_labels(shape, seed=n))
    return folder


def run(source: Path, out: Path, *settings, **options):
    return prepare_dataset(read_dataset(source), out, *settings, **{"workers": 1, **options})


def stored(out: Path, name: str):
    """Read the entry of a case, its values and its labels."""
    dataset = read_prepared(out)
    entry = next(case for case in dataset.cases if case.id == name)
    return (entry, *dataset.read(entry, range(entry.shape[0])))


def canonical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read with nibabel the stored voxels in the order [D, H, W], and the affine from this index to RAS."""
    image = nib.as_closest_canonical(nib.load(path))
    i, j, _ = image.shape
    to_ras = np.array([[0, 0, -1, i - 1], [0, -1, 0, j - 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    return np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1], image.affine @ to_ras


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the bytes and the time of modification of each file."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in snapshot(folder).items()}
