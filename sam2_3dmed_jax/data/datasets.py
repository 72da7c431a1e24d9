"""The one door to labelled datasets: tasks of the Medical Segmentation Decathlon (MSD), and what looks like them.

That is nnU-Net's raw data, and any `imagesTr` and `labelsTr`; in a folder, or in a `.tar`, whose cases are unpacked
one at a time (`archive.unpacked`).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from sam2_3dmed_jax.data import dataset_json, layouts
from sam2_3dmed_jax.data.tar_members import Member
from sam2_3dmed_jax.data.trees import DESCRIPTION, IMAGES, FolderTree, TarTree, Tree
from sam2_3dmed_jax.errors import UserError

PREPARED = "index.json"  # what `prepare` leaves
_DESCRIPTION_LIMIT = 16 * 2**20  # bytes; MSD's largest is below 100 kB


@dataclass(frozen=True)
class Case:
    """One labelled scan."""

    id: str  # file name without suffix; can name a file
    image: str  # path, or in an archive the member's name
    label: str


@dataclass(frozen=True)
class Dataset:
    """The labelled cases of a dataset, sorted by id."""

    name: str
    labels: dict[int, str]  # label value (1..255) to name, without the background; {}: not declared
    cases: tuple[Case, ...]
    record: dict[str, Any]  # dataset.json as it stands; {}: there is none
    modality: str | None = None  # as declared, such as "CT" or "MRI"
    archive: str | None = None  # the .tar that holds the cases
    members: dict[str, Member] = field(default_factory=dict, repr=False)  # where in the archive they lie
    warnings: tuple[str, ...] = ()  # a sentence each: what is odd, and was left out or does not matter


def read_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Find the labelled cases, and check that their files are there; no image is read.

    Hidden `._*` files, which MSD archives carry, are no images and are left out.

    Args:
        path: the folder of a dataset, or its uncompressed `.tar`.

    Raises:
        UserError: no dataset at `path`; one whose description is incomplete, leads out of it or names files that are
            not there; several channels, regions, no labels or no cases; a tar that is damaged or not to be trusted.
    """
    place = epath.Path(path)
    if not place.exists():
        raise UserError(f"{path}: there is no such dataset; give the folder of a dataset, or its .tar")
    if place.name == DESCRIPTION:
        raise UserError(f"{path} describes a dataset, expected its folder; give {place.parent}")
    packed = None if place.is_dir() else TarTree(path)
    tree: Tree = packed or FolderTree(path)
    labels: dict[int, str] = {}
    record = modality = None
    if tree.has(DESCRIPTION):
        where = tree.shown(DESCRIPTION)
        record = dataset_json.parse(tree.read(DESCRIPTION, _DESCRIPTION_LIMIT), where)
        labels, modality = dataset_json.labels_of(record, where), dataset_json.channel_of(record, where)
    elif tree.has(PREPARED):
        raise UserError(f"{path} is a prepared dataset, expected the image files that it was made from; give those")
    elif not tree.names(IMAGES):
        raise UserError(
            f"{path}: it has no {DESCRIPTION}, and no images in {IMAGES}; give the folder of a dataset in MSD or "
            "nnU-Net layout"
        )
    pairs = layouts.pair(tree, record)
    cases = tuple(Case(id, tree.path(image), tree.path(label)) for id, (image, label) in sorted(pairs.cases.items()))
    return Dataset(
        name=dataset_json.name_of(record or {}, tree.name),
        labels=labels,
        cases=cases,
        record=record or {},
        modality=modality,
        archive=os.fspath(path) if packed else None,
        members={name: packed.member(name) for case in cases for name in (case.image, case.label)} if packed else {},
        warnings=tuple(pairs.warnings),
    )


@dataclass(frozen=True)
class UnlabelledSet:
    """The scans of a task whose labels are withheld."""

    task: str  # the folder's name, such as Task09_Spleen
    labels: dict[int, str]
    images: dict[str, str]  # id to path, sorted


def read_test_set(path: str | os.PathLike[str]) -> UnlabelledSet:
    """Find the test images of a task, and check that they are there; no image is read.

    Raises:
        UserError: no folder with a `dataset.json` that declares labels, or no test images.
    """
    tree = FolderTree(path)
    if not tree.has(DESCRIPTION):
        raise UserError(f"{path}: it has no {DESCRIPTION}; give the folder of a task of the Decathlon, unpacked")
    where = tree.shown(DESCRIPTION)
    record = dataset_json.parse(tree.read(DESCRIPTION, _DESCRIPTION_LIMIT), where)
    images = layouts.test_images(tree, record)
    labels = dataset_json.labels_of(record, where)
    return UnlabelledSet(tree.name, labels, {case: tree.path(images[case]) for case in sorted(images)})


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over each case's id and the sizes of its files.

    It tells datasets apart whose cases bear the same names, and knows one again that was moved or packed.
    """
    sizes = {name: member.size for name, member in dataset.members.items()}
    cases = [
        [
            case.id,
            *(sizes[file] if dataset.archive else epath.Path(file).stat().length for file in (case.image, case.label)),
        ]
        for case in dataset.cases
    ]
    return hashlib.sha256(json.dumps(cases).encode()).hexdigest()


def on_disk(dataset: Dataset) -> Dataset:
    """The dataset itself, for those who open the paths of its cases.

    Raises:
        UserError: it lies in an archive.
    """
    if dataset.archive:
        raise UserError(f"{dataset.archive} is an archive, expected a folder here; unpack it with `tar -xf`")
    return dataset
