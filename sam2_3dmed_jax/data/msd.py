"""Datasets in the layout of the Medical Segmentation Decathlon (MSD): `dataset.json`, `imagesTr`, `labelsTr`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from etils import epath

from sam2_3dmed_jax.errors import UserError


@dataclass(frozen=True)
class Case:
    """One labelled scan."""

    id: str  # file name without suffix
    image: str
    label: str


@dataclass(frozen=True)
class Dataset:
    """The labelled cases of a dataset, sorted by id."""

    name: str
    labels: dict[int, str]  # label value to name, without the background
    cases: tuple[Case, ...]
    record: dict[str, Any]  # dataset.json as it stands


def read_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Read `dataset.json` and check that its files are there.

    Hidden `._*` files, which MSD archives carry, are no images and are left out.

    Raises:
        UserError: no dataset at `path`, or one whose description is incomplete or names files that are not there.
    """
    root = epath.Path(path)
    file = root / "dataset.json"
    if not file.exists():
        raise UserError(f"{path}: it has no dataset.json; give the folder of a dataset in MSD layout")
    try:
        record = json.loads(file.read_text())
        labels = {int(value): str(name) for value, name in record["labels"].items() if int(value) != 0}
        pairs = [(str(entry["image"]), str(entry["label"])) for entry in record["training"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: it is no MSD description ({error!r}); it needs 'labels' and 'training'") from error
    cases = []
    for image, label in sorted(pairs):
        name = os.path.basename(image)
        if name.startswith("._"):
            continue
        for part in (image, label):
            if os.path.isabs(part) or ".." in part.split("/"):
                raise UserError(f"{file}: '{part}' leaves the dataset's folder; use paths such as ./imagesTr/x.nii.gz")
            if not (root / part).exists():
                raise UserError(f"{file}: it names {part}, which is not there; unpack the whole dataset")
        cases.append(Case(name.split(".nii")[0], str(root / image), str(root / label)))
    if not cases:
        raise UserError(f"{file}: it lists no training cases; give a dataset with labels")
    return Dataset(str(record.get("name", root.name)), labels, tuple(cases), record)
