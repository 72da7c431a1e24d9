"""Reader of labelled datasets of image files: Medical Segmentation Decathlon (MSD), nnU-Net, `imagesTr` and `labelsTr`.

A dataset is a folder, or an uncompressed `.tar`, whose cases are unpacked one at a time (`archive.unpack_case`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.data import dataset_json, layouts
from sam2_3dmed_jax.data.dataset_files import DATASET_JSON, IMAGES, ArchiveFiles, DatasetFiles, FolderFiles
from sam2_3dmed_jax.data.prepared import INDEX
from sam2_3dmed_jax.data.tar_members import TarMember
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.hashing import sha256_of_json
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.volume.modality import CT, dicom_modality

_DATASET_JSON_LIMIT = 16 * 2**20  # bytes; the largest of MSD is below 100 kB


@dataclass(frozen=True)
class LabelledCase:
    """One labelled scan."""

    id: str  # file name without suffix; safe as a file name
    image: str  # path, or the name of the member of an archive
    label: str


@dataclass(frozen=True)
class Dataset:
    """The labelled cases of a dataset, sorted by id."""

    name: str
    labels: dict[int, str]  # label value (1..255) to name, without the background; {}: not declared
    cases: tuple[LabelledCase, ...]
    record: dict[str, Any]  # content of dataset.json; {}: the dataset does not have one
    modality: str | None = None  # as declared, such as "CT" or "MRI"
    archive: str | None = None  # the .tar that holds the cases
    members: dict[str, TarMember] = field(default_factory=dict, repr=False)  # positions of the files in the archive
    warnings: tuple[str, ...] = ()  # one sentence each, about inconsistencies and files that are not used


def read_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Find the labelled cases and check that their files exist; no image is read.

    Hidden `._*` files, which MSD archives contain, are skipped.

    Args:
        path: the folder of a dataset, or its uncompressed `.tar`.

    Raises:
        UserError: `path` is not a dataset; its description is incomplete, or contains paths that leave the dataset or
            do not exist; it has several channels, regions, no labels or no cases; the tar is damaged or unsafe.
    """
    check_local(path)
    source = Path(path)
    if not source.exists():
        raise UserError(f"{path} does not exist; give the folder of a dataset, or its .tar")
    if source.name == DATASET_JSON:
        raise UserError(f"{path} describes a dataset, expected its folder; give {source.parent}")
    archive = None if source.is_dir() else ArchiveFiles(path)
    files: DatasetFiles = archive or FolderFiles(path)
    labels: dict[int, str] = {}
    record = modality = None
    if files.contains(DATASET_JSON):
        where = files.display_path(DATASET_JSON)
        record = dataset_json.parse_description(files.read_bytes(DATASET_JSON, _DATASET_JSON_LIMIT), where)
        labels, modality = dataset_json.declared_labels(record, where), dataset_json.declared_channel(record, where)
    elif files.contains(INDEX):
        raise UserError(
            f"{path} is a prepared dataset, expected a dataset of image files; give the one that it was prepared from"
        )
    elif not files.list_files(IMAGES):
        raise UserError(
            f"{path} has no {DATASET_JSON}, and no images in {IMAGES}; give the folder of a dataset in MSD or "
            "nnU-Net layout"
        )
    pairs = layouts.pair_cases(files, record)
    cases = tuple(
        LabelledCase(id, files.path(image), files.path(label)) for id, (image, label) in sorted(pairs.cases.items())
    )
    return Dataset(
        name=dataset_json.declared_name(record or {}, files.name),
        labels=labels,
        cases=cases,
        record=record or {},
        modality=modality,
        archive=os.fspath(path) if archive else None,
        members={name: archive.member(name) for case in cases for name in (case.image, case.label)} if archive else {},
        warnings=tuple(pairs.warnings),
    )


def dataset_files(dataset: Dataset, path: str | os.PathLike[str]) -> list[str]:
    """Return the files that a dataset at a path is read from."""
    if dataset.archive:
        return [dataset.archive]
    return [os.path.join(path, DATASET_JSON), *(file for case in dataset.cases for file in (case.image, case.label))]


def scan_modality(dataset: Dataset, given: str = "") -> str:
    """Return DICOM's code for the scans of a dataset: the given one, the declared one, or CT."""
    return given or dicom_modality(dataset.modality) or CT


@dataclass(frozen=True)
class UnlabelledDataset:
    """The test images of a task, whose labels are not published."""

    task: str  # the folder's name, such as Task09_Spleen
    labels: dict[int, str]
    images: dict[str, str]  # id to path, sorted
    modality: str | None = None  # as declared, such as "CT" or "MRI"


def read_test_set(path: str | os.PathLike[str]) -> UnlabelledDataset:
    """Find the test images of a task and check that they exist; no image is read.

    Raises:
        UserError: `path` is not a folder with a `dataset.json` that declares labels, or has no test images.
    """
    files = FolderFiles(path)
    if not files.contains(DATASET_JSON):
        raise UserError(f"{path} has no {DATASET_JSON}; give the folder of a task of the Decathlon, unpacked")
    where = files.display_path(DATASET_JSON)
    record = dataset_json.parse_description(files.read_bytes(DATASET_JSON, _DATASET_JSON_LIMIT), where)
    images = layouts.find_test_images(files, record)
    labels = dataset_json.declared_labels(record, where)
    paths = {case: files.path(images[case]) for case in sorted(images)}
    return UnlabelledDataset(files.name, labels, paths, dataset_json.declared_channel(record, where))


def dataset_fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 over the id of each case and the sizes of its files.

    It distinguishes datasets with the same ids, and does not change when a dataset is moved or packed.
    """
    sizes = {name: member.size for name, member in dataset.members.items()}
    cases = [
        [
            case.id,
            *(sizes[file] if dataset.archive else Path(file).stat().st_size for file in (case.image, case.label)),
        ]
        for case in dataset.cases
    ]
    return sha256_of_json(cases)


def require_folder(dataset: Dataset) -> Dataset:
    """Return the dataset if the paths of its cases can be opened.

    Raises:
        UserError: the dataset is an archive.
    """
    if dataset.archive:
        raise UserError(f"{dataset.archive} is an archive, expected a folder here; unpack it with `tar -xf`")
    return dataset
