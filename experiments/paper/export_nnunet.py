"""Export of a dataset to nnU-Net's raw layout, with our folds as `splits_final.json` so that nnU-Net uses them.

    python experiments/paper/export_nnunet.py data/Task09_Spleen nnUNet_raw --number 9

writes `nnUNet_raw/Dataset009_Spleen/{imagesTr,labelsTr,dataset.json,splits_final.json}`. nnU-Net reads the last file
from `nnUNet_preprocessed/Dataset009_Spleen`: copy it there after `nnUNetv2_plan_and_preprocess`. `.nii.gz` images are
copied, others are converted. `sam2-3dmed evaluate --predictions` scores nnU-Net's predictions.
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase, read_dataset, require_folder
from sam2_3dmed_jax.data.split_choice import choose_split
from sam2_3dmed_jax.data.split_files import read_splits, write_nnunet_splits
from sam2_3dmed_jax.errors import UserError, message_line
from sam2_3dmed_jax.runtime.atomic_files import atomic_folder, write_errors
from sam2_3dmed_jax.volume.formats import suffix_of
from sam2_3dmed_jax.volume.geometry import from_canonical
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels, write_nifti

ENDING = ".nii.gz"


@dataclass(frozen=True)
class Export:
    """Command-line options of the export."""

    dataset: tyro.conf.Positional[str]  # folder in MSD or nnU-Net layout
    out: tyro.conf.Positional[str]  # nnU-Net's raw folder
    number: int = 1  # nnU-Net's dataset number
    name: str = ""  # nnU-Net's dataset name; "": the same name
    data: DataConfig = field(default_factory=DataConfig)  # only its `split` is used


def export(options: Export) -> Path:
    """Write the dataset and its splits, and return the folder; after an error it does not exist.

    Raises:
        UserError: the dataset does not exist or has no labels, or the folder exists already.
    """
    dataset = require_folder(read_dataset(options.dataset))
    if not dataset.labels:
        raise UserError(f"{options.dataset}: its dataset.json declares no labels, which nnU-Net needs; add them")
    if not 1 <= options.number <= 999:
        raise UserError(f"--number: {options.number} is not a dataset number; give 1 to 999")
    values = sorted(dataset.labels)
    if values != list(range(1, len(values) + 1)):
        raise UserError(f"{options.dataset}: nnU-Net needs labels 1, 2, 3, ..., found {values}; renumber them")
    name = re.sub(r"\W+", "_", options.name or re.sub(r"^(Task|Dataset)\d+_", "", dataset.name))
    folder = Path(options.out, f"Dataset{options.number:03d}_{name}")
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it, or give another --number")
    with write_errors(folder), atomic_folder(folder) as unfinished:
        for part in ("imagesTr", "labelsTr"):
            (unfinished / part).mkdir()
        for case in dataset.cases:
            _write(case, unfinished)
        (unfinished / "dataset.json").write_text(json.dumps(_description(dataset, name), indent=4) + "\n")
        ids = [case.id for case in dataset.cases]
        # All folds of a file of splits are exported unchanged, in order.
        folds = _folds(options.data)
        splits = [
            choose_split(ids, replace(options.data, fold=fold, split=replace(options.data.split, inner_fraction=0.0)))
            for fold in range(folds)
        ]
        write_nnunet_splits(unfinished / "splits_final.json", splits)
    return folder


def _folds(data: DataConfig) -> int:
    if data.split.file:
        return len(read_splits(data.split.file))
    return 1 if data.split.method == "80/20" else data.split.folds


def _write(case: LabelledCase, folder: Path) -> None:
    image, label = folder / "imagesTr" / f"{case.id}_0000{ENDING}", folder / "labelsTr" / f"{case.id}{ENDING}"
    if all(suffix_of(file, (ENDING,)) for file in (case.image, case.label)):
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
        sys.exit(f"error: {message_line(error)}")
