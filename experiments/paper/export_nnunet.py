"""A dataset in nnU-Net's raw layout with our folds as `splits_final.json`: nnU-Net trains on the same splits.

    python experiments/paper/export_nnunet.py data/Task09_Spleen nnUNet_raw --number 9

writes `nnUNet_raw/Dataset009_Spleen/{imagesTr,labelsTr,dataset.json,splits_final.json}`. nnU-Net looks for the last one
in `nnUNet_preprocessed/Dataset009_Spleen`: copy it there after `nnUNetv2_plan_and_preprocess`. Images are written anew
only where they are no `.nii.gz`; others are copied. Its predictions are scored by `sam2-3dmed evaluate --predictions`.
"""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.datasets import Case, Dataset, on_disk, read_dataset
from sam2_3dmed_jax.data.split_choice import choose_split
from sam2_3dmed_jax.data.split_files import read_splits, write_nnunet_splits
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import from_canonical
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels, write_nifti

ENDING = ".nii.gz"


@dataclass(frozen=True)
class Export:
    """What to write where."""

    dataset: tyro.conf.Positional[str]  # folder in MSD or nnU-Net layout
    out: tyro.conf.Positional[str]  # nnU-Net's raw folder
    number: int = 1  # nnU-Net's number of the dataset
    name: str = ""  # its name; "": the dataset's own
    data: DataConfig = field(default_factory=DataConfig)  # its folds: `folds`, `splits`, `patients`


def export(wanted: Export) -> Path:
    """Write the dataset and its splits; returns the folder, which appears whole.

    Raises:
        UserError: no such dataset, one without labels, or a folder that is there already.
    """
    dataset = on_disk(read_dataset(wanted.dataset))
    if not dataset.labels:
        raise UserError(f"{wanted.dataset}: its dataset.json declares no labels, which nnU-Net needs; add them")
    if not 1 <= wanted.number <= 999:
        raise UserError(f"--number: {wanted.number} is no number of a dataset; give 1 to 999")
    values = sorted(dataset.labels)
    if values != list(range(1, len(values) + 1)):
        raise UserError(f"{wanted.dataset}: nnU-Net needs labels 1, 2, 3, ..., found {values}; renumber them")
    name = re.sub(r"\W+", "_", wanted.name or re.sub(r"^(Task|Dataset)\d+_", "", dataset.name))
    folder = Path(wanted.out, f"Dataset{wanted.number:03d}_{name}")
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or give another --number")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for part in ("imagesTr", "labelsTr"):
            (unfinished / part).mkdir(parents=True)
        for case in dataset.cases:
            _write(case, unfinished)
        (unfinished / "dataset.json").write_text(json.dumps(_description(dataset, name), indent=4) + "\n")
        ids = [case.id for case in dataset.cases]
        # A file of splits has as many folds as it has: they are taken as they stand, one after the other.
        folds = _folds(wanted.data)
        splits = [choose_split(ids, replace(wanted.data, fold=fold, inner_fraction=0.0)) for fold in range(folds)]
        write_nnunet_splits(unfinished / "splits_final.json", splits)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _folds(data: DataConfig) -> int:
    if data.splits:
        return len(read_splits(data.splits))
    return 1 if data.split == "80/20" else data.folds


def _write(case: Case, folder: Path) -> None:
    image, label = folder / "imagesTr" / f"{case.id}_0000{ENDING}", folder / "labelsTr" / f"{case.id}{ENDING}"
    if case.image.endswith(ENDING) and case.label.endswith(ENDING):
        shutil.copyfile(case.image, image)
        shutil.copyfile(case.label, label)
        return
    volume = read_volume(case.image)
    write_nifti(image, from_canonical(volume.array, volume.grid), volume.grid.affine)
    write_labels(label, read_labels(case.label, volume), volume)


def _description(dataset: Dataset, name: str) -> dict:
    return {
        "name": name,
        "channel_names": {"0": dataset.modality or "CT"},
        "labels": {"background": 0, **{label: value for value, label in dataset.labels.items()}},
        "numTraining": len(dataset.cases),
        "file_ending": ENDING,
    }


if __name__ == "__main__":
    try:
        print(f"nnU-Net dataset in {export(tyro.cli(Export))}")
    except UserError as error:
        sys.exit(f"error: {error}")
