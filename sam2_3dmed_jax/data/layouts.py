"""Pairing of images and label maps: by the lists in `dataset.json` (MSD, nnU-Net v1 and v2), or by file names.

In nnU-Net the name of an image ends with its channel: `CASE_0000.nii.gz` is the image of the label map `CASE.nii.gz`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sam2_3dmed_jax.data.dataset_files import DATASET_JSON, IMAGES, LABELS, DatasetFiles
from sam2_3dmed_jax.data.dataset_json import declared_suffixes, shortened
from sam2_3dmed_jax.data.tar_members import leaves_folder, normalized
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.volume.case_files import case_files, warn_left_out
from sam2_3dmed_jax.volume.formats import case_id, dataset_suffixes, suffix_of

TEST_IMAGES = "imagesTs"
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.ASCII)
_SAFE_ID = re.compile(r"\w[\w .,+=()@~-]*")


@dataclass
class CasePairs:
    """Image and label of each case by its id, as names of `DatasetFiles`, and warnings about unused files."""

    cases: dict[str, tuple[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, files: DatasetFiles, id: str, image: str, label: str) -> None:
        """Add a case.

        Raises:
            UserError: a file does not exist, or the id exists already or is not a file name.
        """
        for part in (image, label):
            if not files.contains(part):
                raise UserError(f"{files.display_path(part)} does not exist, but is listed; unpack the whole dataset")
        if not _SAFE_ID.fullmatch(id) or len(id.encode()) > 200:
            raise UserError(
                f"{files.display_path('')}: the case {id!r} cannot name a file, expected letters, digits and any of "
                "'_-.,+=()@~ ', up to 200 bytes; rename its image and label"
            )
        if id in self.cases:
            raise UserError(
                f"{files.display_path('')}: two cases are named {id!r} ({self.cases[id][0]!r}, {image!r}), expected "
                "one; rename or remove one"
            )
        self.cases[id] = image, label


def pair_cases(files: DatasetFiles, record: dict[str, Any] | None) -> CasePairs:
    """Find the labelled cases.

    Args:
        files: the files of the dataset.
        record: content of its `dataset.json`; None if it does not have one.

    Raises:
        UserError: there are no cases, files are missing, paths leave the dataset, a case has several channels, or ids
            are not unique or not file names.
    """
    if record is None:
        return _by_name(files, dataset_suffixes())
    where = files.display_path(DATASET_JSON)
    if isinstance(record.get("dataset"), dict):
        pairs = _listed_by_nnunet(files, record["dataset"], where)
    elif "channel_names" in record or "file_ending" in record:
        pairs = _by_name(files, declared_suffixes(record, where, dataset_suffixes()))
    elif "training" in record:
        pairs = _listed(files, record["training"], where)
    else:
        raise UserError(f"{where} has neither 'training' as in MSD, nor 'file_ending' as in nnU-Net; add one of them")
    if not pairs.cases:
        raise UserError(f"{where} lists no training cases; give a dataset with labels")
    declared = record.get("numTraining")
    if declared is not None and declared != len(pairs.cases):
        pairs.warnings.append(
            f"{where}: 'numTraining' is {shortened(declared)}, but {len(pairs.cases)} cases were found; check that the "
            "dataset is complete"
        )
    return pairs


def find_test_images(files: DatasetFiles, record: dict[str, Any]) -> dict[str, str]:
    """Return the test images of a task by id: those that `dataset.json` lists, or all files in `imagesTs`.

    Raises:
        UserError: there are none, a listed image does not exist, or a path leaves the dataset.
    """
    where = files.display_path(DATASET_JSON)
    entries = record.get("test")
    if not entries:
        found = case_files(files.list_files(TEST_IMAGES), dataset_suffixes(), files.display_path(TEST_IMAGES))
        entries = [f"{TEST_IMAGES}/{name}" for name in found.values()]
    if not isinstance(entries, list):
        raise UserError(f"{where}: 'test' is not a list; expected the paths of the images in {TEST_IMAGES}")
    images: dict[str, str] = {}
    for number, entry in enumerate(entries):
        image = _inside(entry.get("image") if isinstance(entry, dict) else entry, where, f"test[{number}]")
        if image.rpartition("/")[2].startswith("."):
            continue
        stem, _ = _split_suffix(image, where)
        image = _existing(files, image)
        if not files.contains(image):
            raise UserError(f"{files.display_path(image)} does not exist, but is listed; unpack the whole dataset")
        if not _SAFE_ID.fullmatch(stem) or stem in images:
            raise UserError(
                f"{where}: test[{number}] is {shortened(image)}, which is not a file name or occurs twice; fix it"
            )
        images[stem] = image
    if not images:
        raise UserError(
            f"{files.display_path('')}: no test images found; give a task of the Decathlon with {TEST_IMAGES}"
        )
    return images


def _listed(files: DatasetFiles, training: Any, where: str) -> CasePairs:
    """Pair the cases of MSD's or nnU-Net v1's list; nnU-Net v1 lists images without the channel in their names."""
    if not isinstance(training, list):
        raise UserError(f'{where}: \'training\' is not a list; expected {{"image": ..., "label": ...}} for each case')
    pairs = CasePairs()
    for number, entry in enumerate(training):
        if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
            raise UserError(f"{where}: training[{number}] is {shortened(entry)}, expected 'image' and 'label'; fix it")
        image = _inside(entry["image"], where, f"training[{number}].image")
        label = _inside(entry["label"], where, f"training[{number}].label")
        if image.rpartition("/")[2].startswith("."):
            continue
        stem, suffix = _split_suffix(image, where)
        label_stem, _ = _split_suffix(label, where)
        image, label = _existing(files, image), _existing(files, label)
        first_channel = _sibling(image, f"{stem}_0000{suffix}")
        if not files.contains(image):
            first_channel = _existing(files, first_channel)
        if stem == f"{label_stem}_0000":
            stem, first_channel = label_stem, image
        if first_channel == image or (not files.contains(image) and files.contains(first_channel)):
            image = first_channel
            _refuse_second_channel(files, image)
        pairs.add(files, stem, image, label)
    _warn_unlisted(files, pairs)
    return pairs


def _listed_by_nnunet(files: DatasetFiles, entries: dict[str, Any], where: str) -> CasePairs:
    """Pair the cases of nnU-Net v2's optional `dataset`: `{"CASE": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}`."""
    pairs = CasePairs()
    for id, entry in entries.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not images or "label" not in entry:
            raise UserError(f"{where}: dataset[{id!r}] is {shortened(entry)}, expected 'images' and 'label'; fix it")
        if len(images) > 1:
            raise UserError(_several_channels(f"{where}: dataset[{id!r}]", len(images)))
        image = _inside(images[0], where, f"dataset[{id!r}].images")
        label = _inside(entry["label"], where, f"dataset[{id!r}].label")
        for part in (image, label):
            _split_suffix(part, where)
        pairs.add(files, id, _existing(files, image), _existing(files, label))
    _warn_unlisted(files, pairs)
    return pairs


def _by_name(files: DatasetFiles, suffixes: Sequence[str]) -> CasePairs:
    """Pair images and label maps whose names agree, apart from the suffix and nnU-Net's channel."""
    images, labels = _stems(files, IMAGES, suffixes), _stems(files, LABELS, suffixes)
    pairs, without_label = CasePairs(), []
    for stem, image in images.items():
        match = _CHANNEL.fullmatch(stem)
        if stem in labels:
            id = stem
        elif match and match[1] in labels:
            id = match[1]
            _refuse_second_channel(files, f"{IMAGES}/{image}")
            if match[2] != "0000":
                raise UserError(_several_channels(files.display_path(f"{IMAGES}/{image}"), int(match[2]) + 1))
        else:
            without_label.append(image)
            continue
        pairs.add(files, id, f"{IMAGES}/{image}", f"{LABELS}/{labels[id]}")
    if not pairs.cases:
        raise UserError(
            f"{files.display_path('')}: no image in {IMAGES} ({len(images)}, first {min(images.values())!r}) has a "
            f"label of the same name in {LABELS} ({len(labels)}, first {min(labels.values())!r}); rename the files"
        )
    without_image = [name for stem, name in labels.items() if stem not in pairs.cases]
    for unpaired, folder, other in ((without_label, IMAGES, "label"), (without_image, LABELS, "image")):
        if unpaired:
            pairs.warnings.append(
                f"{files.display_path(folder)}: {len(unpaired)} files without {other} are not used, first "
                f"{listed([repr(name) for name in unpaired])}; add the {other}, or give both files the same name"
            )
    return pairs


def _stems(files: DatasetFiles, folder: str, suffixes: Sequence[str]) -> dict[str, str]:
    """Return the file names of a folder by their stems, sorted.

    Raises:
        UserError: two files have the same stem, or there are no files with these suffixes.
    """
    names = case_files(files.list_files(folder), suffixes, files.display_path(folder))
    if not names:
        raise UserError(
            f"{files.display_path('')}: {folder} is missing or has no {' or '.join(suffixes)} file; give a dataset "
            f"with {DATASET_JSON}, or with {IMAGES} and {LABELS}"
        )
    return names


def _inside(path: Any, where: str, name: str) -> str:
    """Check a path of `dataset.json`, and return it without `./`.

    Raises:
        UserError: several paths, a path that leaves the dataset, or not a path.
    """
    if isinstance(path, list):
        raise UserError(_several_channels(f"{where}: {name}", len(path)))
    if not isinstance(path, str) or not path.isprintable() or not normalized(path):
        raise UserError(f"{where}: {name} is {shortened(path)}, expected a path such as ./imagesTr/x.nii.gz; fix it")
    if leaves_folder(path):
        raise UserError(f"{where}: {name} {path!r} leaves the dataset's folder; use paths such as ./imagesTr/x.nii.gz")
    return normalized(path)


def _split_suffix(path: str, where: str) -> tuple[str, str]:
    """Return stem and suffix of a file name."""
    name = path.rpartition("/")[2]
    if suffix := suffix_of(name, dataset_suffixes()):
        return name[: -len(suffix)], suffix
    raise UserError(
        f"{where} lists {path!r}, expected a file ending in {', '.join(dataset_suffixes())}; convert the image"
    )


def _existing(files: DatasetFiles, path: str) -> str:
    """Return the path of a file that differs from a listed one only by the case of its suffix, if only that exists."""
    if files.contains(path):
        return path
    folder, _, name = path.rpartition("/")
    suffix, stem = suffix_of(name, dataset_suffixes()), case_id(name, dataset_suffixes())
    for other in files.list_files(folder):
        if case_id(other, dataset_suffixes()) == stem and suffix_of(other, dataset_suffixes()) == suffix:
            return _sibling(path, other)
    return path


def _warn_unlisted(files: DatasetFiles, pairs: CasePairs) -> None:
    """Warn about files of `imagesTr` and `labelsTr` that `dataset.json` does not list."""
    used = {name for pair in pairs.cases.values() for name in pair}
    for folder in (IMAGES, LABELS) if used else ():
        unlisted = [name for name in files.list_files(folder) if f"{folder}/{name}" not in used]
        warn_left_out(unlisted, files.display_path(folder), f"not listed in {DATASET_JSON}")


def _sibling(path: str, name: str) -> str:
    """Return the path of another file in the same folder."""
    parent, slash, _ = path.rpartition("/")
    return f"{parent}{slash}{name}"


def _refuse_second_channel(files: DatasetFiles, image: str) -> None:
    """Refuse a case that has `_0000` and `_0001`."""
    stem, suffix = _split_suffix(image, files.display_path(""))
    second = _existing(files, _sibling(image, f"{stem.removesuffix('_0000')}_0001{suffix}"))
    if stem.endswith("_0000") and files.contains(second):
        raise UserError(_several_channels(files.display_path(second), 2))


def _several_channels(what: str, count: int) -> str:
    return f"{what}: a case has {count} channels or more, expected one; make a dataset with one of them"
