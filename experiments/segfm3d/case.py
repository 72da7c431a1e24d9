"""One case of the challenge: an image with the prompts so far, read from an untrusted `.npz` file and checked.

The format is the one of the challenge's script (`CVPR25_iter_eval.py` and `get_boxes.py` of
JunMa11/CVPR-MedSegFMCompetition). Where its text and its code differ, the code counts: clicks are indices of the array
`imgs[D, H, W]`, and `spacing` has the order of the axes of this array. `boxes[i]` and `clicks[i]` belong to class
i + 1. Left out: `prev_pred`, because all clicks so far are in the file, so that the earlier steps are computed again
exactly, with the model's logits in place of a label map; and `text_prompts`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.segfm3d.npz_files import read_npz
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.voxel_prompts import MAX_POINTS

MOST_CLASSES = 255  # `segs` is uint8


@dataclass(frozen=True)
class ClassBox:
    """The box of a class: its extent in slices, and a box on one slice; inclusive indices of `imgs`."""

    z_min: int
    z_max: int
    z_mid: int
    z_mid_x_min: int
    z_mid_y_min: int
    z_mid_x_max: int
    z_mid_y_max: int


@dataclass(frozen=True)
class Click:
    """A click in a class."""

    voxel: tuple[int, int, int]  # (z, y, x), index of `imgs`
    inside: bool  # foreground


@dataclass(frozen=True, eq=False)
class Case:
    """An image and the prompts of its classes, in the order of the classes."""

    name: str  # of the file, with its suffix
    images: np.ndarray  # uint8 [D, H, W], intensities that are windowed already
    spacing: tuple[float, float, float]  # (dz, dy, dx), mm
    boxes: tuple[ClassBox, ...] | None  # None: the case has no boxes
    clicks: tuple[tuple[Click, ...], ...] | None  # of each class, in the order in which they were given

    @property
    def classes(self) -> int:
        """The number of classes with prompts."""
        return len(self.boxes or self.clicks or ())


@dataclass(frozen=True, eq=False)
class EvaluationCase:
    """A case without clicks, and its reference."""

    case: Case
    reference: np.ndarray  # uint8 or larger [D, H, W]
    boxes: list[dict[str, int]] | None  # as the challenge stores them

    @property
    def classes(self) -> list[int]:
        """The values of the reference, except 0."""
        return [int(value) for value in np.unique(self.reference) if value]


def read_case(path: str | os.PathLike[str], check_prompts: bool = True) -> Case:
    """Read a case.

    Args:
        path: the file.
        check_prompts: refuse a case without prompts.

    Raises:
        UserError: the file is damaged, an array has another form, a prompt is outside of the image, or none exists.
    """
    arrays = read_npz(path, ("imgs", "spacing", "boxes", "clicks", "clicks_order"))
    images, spacing = _image(path, arrays), _spacing(path, arrays)
    boxes = _boxes(path, arrays.get("boxes"), images.shape)
    clicks = _clicks(path, arrays.get("clicks"), arrays.get("clicks_order"), images.shape)
    if check_prompts and boxes is None and clicks is None:
        raise UserError(f"{path} has neither boxes nor clicks; give one of them for each class")
    if boxes is not None and clicks is not None and len(boxes) != len(clicks):
        raise UserError(
            f"{path} has boxes of {len(boxes)} classes and clicks of {len(clicks)}; give both for each class"
        )
    return Case(Path(path).name, images, spacing, boxes, clicks)


def read_evaluation_case(path: str | os.PathLike[str], references: str | os.PathLike[str] | None) -> EvaluationCase:
    """Read a case for the evaluation loop.

    Args:
        path: the file; its clicks are not used.
        references: folder with a file of the same name that has `gts`; None: `gts` is in `path`.

    Raises:
        UserError: as `read_case`, or the reference is missing, empty or on another grid.
    """
    case = read_case(path, check_prompts=False)
    source = path if references is None else Path(references, case.name)
    reference = read_npz(source, ("gts",)).get("gts")
    if not isinstance(reference, np.ndarray) or reference.dtype.kind not in "iub":
        raise UserError(f"{source} has no integer array gts; give --gts DIR, the folder of files with the references")
    if reference.shape != case.images.shape:
        raise UserError(f"{source}: gts has the shape {reference.shape}, and imgs {case.images.shape}; give one grid")
    if not reference.any() or reference.min() < 0 or reference.max() > MOST_CLASSES:
        raise UserError(f"{source}: gts is empty or has values other than 0 to {MOST_CLASSES}; give 1 for class 1")
    boxes = None if case.boxes is None else [vars(box).copy() for box in case.boxes]
    return EvaluationCase(case, reference, boxes)


def case_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the `.npz` files of a folder in the order of their names.

    Raises:
        UserError: the folder does not exist, or has none.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of the .npz files")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix == ".npz" and not path.name.startswith("."))
    if not files:
        raise UserError(f"{folder} has no .npz files; give the folder of the challenge's images")
    return files


def _image(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> np.ndarray:
    images = arrays.get("imgs")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 3 or not images.size:
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else "missing, or is not numbers"
        raise UserError(f"{path}: imgs is {found}; give uint8 [D, H, W]")
    return images


def _spacing(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> tuple[float, float, float]:
    spacing = arrays.get("spacing")
    # Only numbers are shown in the message: the text of nested lists from a hostile file can be endless.
    numbers = spacing.ravel()[:4].astype(np.float64).tolist() if isinstance(spacing, np.ndarray) else []
    # The range keeps the products of the affine finite; no scanner is near its ends.
    if len(numbers) != 3 or not all(1e-6 < number < 1e6 for number in numbers):
        raise UserError(f"{path}: spacing is {numbers}; give three positive numbers in mm")
    z, y, x = numbers
    return z, y, x


def _boxes(path: str | os.PathLike[str], boxes: Any, shape: Sequence[int]) -> tuple[ClassBox, ...] | None:
    if boxes is None:
        return None
    names = tuple(ClassBox.__dataclass_fields__)
    found = []
    for number, box in enumerate(_list_of_classes(path, "boxes", boxes), 1):
        if not isinstance(box, dict) or not all(_is_index(box.get(name)) for name in names):
            raise UserError(f"{path}: boxes of class {number} is not a dict of whole numbers {', '.join(names)}")
        found.append(checked := ClassBox(**{name: int(box[name]) for name in names}))
        depth, height, width = shape
        if not (
            0 <= checked.z_min <= checked.z_mid <= checked.z_max < depth
            and 0 <= checked.z_mid_y_min <= checked.z_mid_y_max < height
            and 0 <= checked.z_mid_x_min <= checked.z_mid_x_max < width
        ):
            raise UserError(f"{path}: the box of class {number} is not inside of imgs, whose shape is {tuple(shape)}")
    return tuple(found)


def _clicks(
    path: str | os.PathLike[str], clicks: Any, order: Any, shape: Sequence[int]
) -> tuple[tuple[Click, ...], ...] | None:
    """Return the clicks of each class in order; without `clicks_order`, foreground first."""
    if clicks is None:
        return None
    found = []
    for number, entry in enumerate(_list_of_classes(path, "clicks", clicks), 1):
        where = f"{path}: clicks of class {number}"
        if not isinstance(entry, dict) or not all(isinstance(entry.get(kind), list) for kind in ("fg", "bg")):
            raise UserError(f"{where} is not a dict with the lists fg and bg")
        if len(entry["fg"]) + len(entry["bg"]) > MAX_POINTS:
            raise UserError(f"{where} has more than {MAX_POINTS} clicks; give fewer")
        voxels = {kind: [_voxel(where, voxel, shape) for voxel in entry[kind]] for kind in ("fg", "bg")}
        kinds = _order(where, order, number, voxels)
        left = {kind: iter(places) for kind, places in voxels.items()}
        found.append(tuple(Click(next(left[kind]), kind == "fg") for kind in kinds))
    return tuple(found)


def _order(where: str, order: Any, number: int, voxels: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return "fg" or "bg" for each click of a class; None in `clicks_order` means a step without a click."""
    counted = [kind for kind in voxels for _ in voxels[kind]]
    if order is None:
        return counted
    kinds = order[number - 1] if isinstance(order, list) and len(order) >= number else None
    listed = [kind for kind in kinds if kind in ("fg", "bg")] if isinstance(kinds, list) else None
    if listed is None or sorted(listed) != sorted(counted):
        raise UserError(f"{where}: clicks_order does not list each of them as fg or bg; leave it out or repair it")
    return listed


def _voxel(where: str, voxel: Any, shape: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(voxel, list | tuple) or len(voxel) != 3 or not all(map(_is_index, voxel)):
        raise UserError(f"{where}: one of them is not three whole numbers (z, y, x)")
    if not all(0 <= index < length for index, length in zip(voxel, shape, strict=True)):
        raise UserError(f"{where}: {tuple(voxel)} is outside of imgs, whose shape is {tuple(shape)}")
    z, y, x = map(int, voxel)
    return z, y, x


def _list_of_classes(path: str | os.PathLike[str], name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CLASSES:
        raise UserError(f"{path}: {name} is not a list of 1 to {MOST_CLASSES} classes")
    return value


def _is_index(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())
