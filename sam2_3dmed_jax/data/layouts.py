"""Which image goes with which label: as `dataset.json` lists them (MSD, nnU-Net v1 and v2), or by the files' names.

nnU-Net writes the channel into an image's name: `CASE_0000.nii.gz` goes with the label `CASE.nii.gz`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sam2_3dmed_jax.data.dataset_json import ending_of, short
from sam2_3dmed_jax.data.tar_members import clean, leaves
from sam2_3dmed_jax.data.trees import DESCRIPTION, IMAGES, LABELS, Tree
from sam2_3dmed_jax.errors import UserError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # formats of one file a volume
TEST_IMAGES = "imagesTs"
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.ASCII)
_SAFE_ID = re.compile(r"\w[\w .,+=()@~-]*")


@dataclass
class Pairs:
    """Image and label of each case by its id, as names in the tree; and sentences on what was left out."""

    cases: dict[str, tuple[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, tree: Tree, id: str, image: str, label: str) -> None:
        """Add a case. UserError: a file is not there, or the id is no file name or taken."""
        for part in (image, label):
            if not tree.has(part):
                raise UserError(f"{tree.shown(part)} is not there, though it is listed; unpack the whole dataset")
        if not _SAFE_ID.fullmatch(id) or len(id.encode()) > 200:
            raise UserError(
                f"{tree.shown('')}: the case {id!r} cannot name a file, expected letters, digits and any of "
                "'_-.,+=()@~ ', up to 200 bytes; rename its image and label"
            )
        if id in self.cases:
            raise UserError(
                f"{tree.shown('')}: two cases are called {id!r} ({self.cases[id][0]!r}, {image!r}), expected one; "
                "rename or remove one"
            )
        self.cases[id] = image, label


def pair(tree: Tree, record: dict[str, Any] | None) -> Pairs:
    """Find the labelled cases.

    Args:
        tree: the dataset's files.
        record: its `dataset.json`, if it has one.

    Raises:
        UserError: no case at all, files that are not there, paths out of the dataset, several channels, or ids that
            are taken or no file names.
    """
    if record is None:
        return _by_name(tree, ENDINGS)
    where = tree.shown(DESCRIPTION)
    if isinstance(record.get("dataset"), dict):
        pairs = _listed_by_nnunet(tree, record["dataset"], where)
    elif "channel_names" in record or "file_ending" in record:
        pairs = _by_name(tree, ending_of(record, where, ENDINGS))
    elif "training" in record:
        pairs = _listed(tree, record["training"], where)
    else:
        raise UserError(
            f"{where} is no MSD description, as 'training' is missing, nor nnU-Net's, as 'file_ending' is; add either"
        )
    if not pairs.cases:
        raise UserError(f"{where}: it lists no training cases; give a dataset with labels")
    declared = record.get("numTraining")
    if declared is not None and declared != len(pairs.cases):
        pairs.warnings.append(
            f"{where}: 'numTraining' is {short(declared)}, but {len(pairs.cases)} cases were found; check that the "
            "dataset is whole"
        )
    return pairs


def test_images(tree: Tree, record: dict[str, Any]) -> dict[str, str]:
    """The scans that a task keeps without labels, by id: as `dataset.json` lists them, or as they lie in `imagesTs`.

    Raises:
        UserError: there are none, one is not there, or a path leads out of the dataset.
    """
    where = tree.shown(DESCRIPTION)
    listed = record.get("test") or [f"{TEST_IMAGES}/{name}" for name in tree.names(TEST_IMAGES)]
    if not isinstance(listed, list):
        raise UserError(f"{where}: 'test' is no list; expected the paths of the images in {TEST_IMAGES}")
    found: dict[str, str] = {}
    for number, entry in enumerate(listed):
        image = _inside(entry.get("image") if isinstance(entry, dict) else entry, where, f"test[{number}]")
        if image.rpartition("/")[2].startswith("."):
            continue
        stem, _ = _split(image, where)
        if not tree.has(image):
            raise UserError(f"{tree.shown(image)} is not there, though it is listed; unpack the whole dataset")
        if not _SAFE_ID.fullmatch(stem) or stem in found:
            raise UserError(f"{where}: test[{number}] is {short(image)}, no name of a file, or there twice; mend it")
        found[stem] = image
    if not found:
        raise UserError(f"{tree.shown('')}: it has no test images; give a task of the Decathlon with {TEST_IMAGES}")
    return found


def _listed(tree: Tree, training: Any, where: str) -> Pairs:
    """MSD's and nnU-Net v1's list; v1 leaves the channel out of the images' names."""
    if not isinstance(training, list):
        raise UserError(f'{where}: \'training\' is no list; expected {{"image": ..., "label": ...}} for each case')
    pairs = Pairs()
    for number, entry in enumerate(training):
        if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
            raise UserError(f"{where}: training[{number}] is {short(entry)}, expected 'image' and 'label'; mend it")
        image = _inside(entry["image"], where, f"training[{number}].image")
        label = _inside(entry["label"], where, f"training[{number}].label")
        if image.rpartition("/")[2].startswith("."):
            continue
        stem, ending = _split(image, where)
        label_stem, _ = _split(label, where)
        first = _sibling(image, f"{stem}_0000{ending}")
        if stem == f"{label_stem}_0000":
            stem, first = label_stem, image
        if first == image or (not tree.has(image) and tree.has(first)):
            image = first
            _refuse_second_channel(tree, image)
        pairs.add(tree, stem, image, label)
    return pairs


def _listed_by_nnunet(tree: Tree, listed: dict[str, Any], where: str) -> Pairs:
    """The optional `dataset` of v2: `{"CASE": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}`."""
    pairs = Pairs()
    for id, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not images or "label" not in entry:
            raise UserError(f"{where}: dataset[{id!r}] is {short(entry)}, expected 'images' and 'label'; mend it")
        if len(images) > 1:
            raise UserError(_several(f"{where}: dataset[{id!r}]", len(images)))
        image = _inside(images[0], where, f"dataset[{id!r}].images")
        label = _inside(entry["label"], where, f"dataset[{id!r}].label")
        for part in (image, label):
            _split(part, where)
        pairs.add(tree, id, image, label)
    return pairs


def _by_name(tree: Tree, endings: Sequence[str]) -> Pairs:
    images, labels = _stems(tree, IMAGES, endings), _stems(tree, LABELS, endings)
    pairs, bare = Pairs(), []
    for stem, image in images.items():
        match = _CHANNEL.fullmatch(stem)
        if stem in labels:
            id = stem
        elif match and match[1] in labels:
            id = match[1]
            _refuse_second_channel(tree, f"{IMAGES}/{image}")
            if match[2] != "0000":
                raise UserError(_several(tree.shown(f"{IMAGES}/{image}"), int(match[2]) + 1))
        else:
            bare.append(image)
            continue
        pairs.add(tree, id, f"{IMAGES}/{image}", f"{LABELS}/{labels[id]}")
    if not pairs.cases:
        raise UserError(
            f"{tree.shown('')}: no image in {IMAGES} ({len(images)}, first {min(images.values())!r}) has a label of "
            f"its name in {LABELS} ({len(labels)}, first {min(labels.values())!r}); name them alike"
        )
    alone = [name for stem, name in labels.items() if stem not in pairs.cases]
    for left, folder, other in ((bare, IMAGES, "label"), (alone, LABELS, "image")):
        if left:
            pairs.warnings.append(
                f"{tree.shown(folder)}: {len(left)} without {other} left out, first {left[0]!r}; add the {other}, or "
                "name both files alike"
            )
    return pairs


def _stems(tree: Tree, folder: str, endings: Sequence[str]) -> dict[str, str]:
    """File names of a folder by what stands before the ending, sorted."""
    found: dict[str, str] = {}
    for name in tree.names(folder):
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is None:
            continue
        stem = name.removesuffix(ending)
        if stem in found:
            raise UserError(f"{tree.shown(folder)} holds both {found[stem]!r} and {name!r}; remove one")
        found[stem] = name
    if not found:
        raise UserError(
            f"{tree.shown('')}: {folder} is missing or holds no {' or '.join(endings)} file; give a dataset with "
            f"{DESCRIPTION}, or with {IMAGES} and {LABELS}"
        )
    return found


def _inside(path: Any, where: str, name: str) -> str:
    """A path as written in `dataset.json`, without `./`."""
    if isinstance(path, list):
        raise UserError(_several(f"{where}: {name}", len(path)))
    if not isinstance(path, str) or not path.isprintable() or not clean(path):
        raise UserError(f"{where}: {name} is {short(path)}, expected a path such as ./imagesTr/x.nii.gz; mend it")
    if leaves(path):
        raise UserError(f"{where}: {name} {path!r} leaves the dataset's folder; use paths such as ./imagesTr/x.nii.gz")
    return clean(path)


def _split(path: str, where: str) -> tuple[str, str]:
    """Stem and ending of a file name."""
    name = path.rpartition("/")[2]
    for ending in ENDINGS:
        if name.endswith(ending):
            return name.removesuffix(ending), ending
    raise UserError(f"{where}: it lists {path!r}, expected a file ending in {', '.join(ENDINGS)}; convert the image")


def _sibling(path: str, name: str) -> str:
    """The path of another file in the same folder."""
    parent, slash, _ = path.rpartition("/")
    return f"{parent}{slash}{name}"


def _refuse_second_channel(tree: Tree, image: str) -> None:
    """Refuse a case whose `_0000` has a `_0001` beside it."""
    stem, ending = _split(image, tree.shown(""))
    second = _sibling(image, f"{stem.removesuffix('_0000')}_0001{ending}")
    if stem.endswith("_0000") and tree.has(second):
        raise UserError(_several(tree.shown(second), 2))


def _several(what: str, count: int) -> str:
    return f"{what}: a case has {count} channels or more, expected one; make a dataset of one of them"
