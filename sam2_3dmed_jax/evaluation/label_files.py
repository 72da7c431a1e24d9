"""Pairs of label maps that lie in two folders: a prediction of any method beside its reference.

Files belong together by name without suffix. A prediction that is not there counts as empty; it lies on its
reference's grid, or is moved there by nearest neighbour if the user asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid, Volume, check_same_grid
from sam2_3dmed_jax.volume.io import read_label_map, read_volume
from sam2_3dmed_jax.volume.nearest_grid import onto_grid

_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Pair:
    """The files of a case."""

    case: str
    reference: Path
    prediction: Path | None  # None: missing
    image: Path | None = None  # the scan, for pictures


def find_pairs(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
) -> tuple[list[Pair], list[str]]:
    """The cases of a folder of references, and the predictions that belong to none of them.

    Args:
        predictions: folder of label maps.
        references: folder of label maps.
        images: folder of the scans, named like the references or, as nnU-Net has it, with `_0000` behind; or None.

    Raises:
        UserError: a folder is missing, there are no references, or not one prediction, or image, for them.
    """
    found, wanted = by_name(predictions), by_name(references)
    if not wanted:
        raise UserError(f"{references}: it holds no .nii or .nii.gz file; give the folder of reference label maps")
    if not found.keys() & wanted.keys():
        first = next(iter(wanted.values())).name
        raise UserError(
            f"{predictions}: {len(wanted)} of {len(wanted)} predictions are missing, first {first}; name each like its "
            "reference"
        )
    scans = {case.removesuffix("_0000"): path for case, path in by_name(images).items()} if images else {}
    if images and not scans.keys() & wanted.keys():
        first = next(iter(wanted.values())).name
        raise UserError(
            f"--images: {images} holds no image of a reference, first {first}; name each like its reference"
        )
    pairs = [Pair(case, path, found.get(case), scans.get(case)) for case, path in wanted.items()]
    return pairs, sorted(found.keys() - wanted.keys())


def read_pair(pair: Pair, remap: Mapping[int, int], resample: bool) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Prediction and reference, int32 `[D, H, W]` each, and the reference's grid.

    Args:
        pair: of files.
        remap: values of the prediction, and what they become.
        resample: move the prediction to the reference's grid where it lies on another.

    Raises:
        UserError: a file cannot be read, or lies on another grid.
    """
    reference, grid = read_label_map(pair.reference)
    if pair.prediction is None:
        return np.zeros_like(reference), reference, grid
    prediction, own = read_label_map(pair.prediction)
    try:
        check_same_grid(own, grid)
    except UserError as error:
        if not resample:
            raise UserError(f"{error}, or give --resample to have it done by nearest neighbour") from None
        prediction = onto_grid(prediction, own, grid)
    return remapped(prediction, remap), reference, grid


def read_scan(pair: Pair, grid: Grid) -> Volume | None:
    """The image of a case, or None if there is none.

    Raises:
        UserError: it cannot be read, or lies on another grid than the reference.
    """
    if pair.image is None:
        return None
    volume = read_volume(pair.image)
    check_same_grid(volume.grid, grid)
    return volume


def remapped(labels: np.ndarray, remap: Mapping[int, int]) -> np.ndarray:
    """Labels with values exchanged, all at once: `{1: 2, 2: 1}` swaps."""
    found = labels.copy() if remap else labels
    for old, new in remap.items():
        found[labels == old] = new
    return found


def label_values(pairs: list[Pair]) -> list[int]:
    """All values but 0 that the references hold.

    Raises:
        UserError: a file cannot be read, or there are none.
    """
    values: set[int] = set()
    for pair in pairs:
        values.update(np.unique(read_label_map(pair.reference)[0]).tolist())
    if not (positive := sorted(value for value in values if value > 0)):
        raise UserError(
            f"{pairs[0].reference.parent}: its label maps are all empty; give references that hold an object"
        )
    return positive


def by_name(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """NIfTI files of a folder by their name without suffix, sorted.

    Raises:
        UserError: no such folder, or two files of one name.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder; give the one with the NIfTI files")
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir()):
        suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and not path.name.startswith("."):
            case = path.name.removesuffix(suffix)
            if case in files:
                raise UserError(f"{folder}: {files[case].name} and {path.name} are both of case {case}; keep one")
            files[case] = path
    return files
