"""Pairs of label maps in two folders: predictions of any method and their references.

Files are paired by name without suffix. A missing prediction counts as empty. A prediction must be on the grid of its
reference, or is moved there by nearest neighbour if the user asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.formats import label_folder_suffixes, suffix_of
from sam2_3dmed_jax.volume.geometry import Grid, Volume, check_same_grid
from sam2_3dmed_jax.volume.io import read_label_map, read_volume
from sam2_3dmed_jax.volume.nearest_grid import onto_grid


@dataclass(frozen=True)
class FilePair:
    """The files of one case."""

    case: str
    reference: Path
    prediction: Path | None  # None: missing
    image: Path | None = None  # the scan, for pictures


def find_pairs(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
) -> tuple[list[FilePair], list[str]]:
    """Pair the predictions of a folder with the references of another.

    Args:
        predictions: folder of label maps.
        references: folder of label maps.
        images: folder of the scans, named like the references or, as nnU-Net does, with `_0000` appended; or None.

    Returns:
        One pair per reference, and the names of predictions without a reference.

    Raises:
        UserError: a folder is missing or has no references, or no prediction, or no image, belongs to a reference.
    """
    predicted, reference_files = by_name(predictions), by_name(references)
    if not reference_files:
        raise UserError(f"{references}: it has no .nii or .nii.gz file; give the folder of reference label maps")
    first = next(iter(reference_files.values())).name
    if not predicted.keys() & reference_files.keys():
        number = len(reference_files)
        raise UserError(
            f"{predictions}: {number} of {number} predictions are missing, first {first}; name each like its reference"
        )
    scans = {case.removesuffix("_0000"): path for case, path in by_name(images).items()} if images else {}
    if images and not scans.keys() & reference_files.keys():
        raise UserError(
            f"--images: {images} holds no image of a reference, first {first}; name each like its reference"
        )
    pairs = [FilePair(case, path, predicted.get(case), scans.get(case)) for case, path in reference_files.items()]
    return pairs, sorted(predicted.keys() - reference_files.keys())


def read_pair(pair: FilePair, remap: Mapping[int, int], resample: bool) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Read a prediction and its reference.

    Args:
        pair: their files.
        remap: label values of the prediction, and their new values.
        resample: move a prediction on another grid to the grid of the reference.

    Returns:
        Prediction and reference, int32 `[D, H, W]` each, and the grid of the reference.

    Raises:
        UserError: a file cannot be read, or the grids differ without `resample`.
    """
    reference, grid = read_label_map(pair.reference)
    if pair.prediction is None:
        return np.zeros_like(reference), reference, grid
    prediction, prediction_grid = read_label_map(pair.prediction)
    try:
        check_same_grid(prediction_grid, grid)
    except UserError as error:
        if not resample:
            raise UserError(f"{error}, or give --resample to have it done by nearest neighbour") from None
        prediction = onto_grid(prediction, prediction_grid, grid)
    return remapped(prediction, remap), reference, grid


def read_scan(pair: FilePair, grid: Grid) -> Volume | None:
    """Read the image of a case, or return None if it has none.

    Raises:
        UserError: the image cannot be read, or its grid differs from the grid of the reference.
    """
    if pair.image is None:
        return None
    volume = read_volume(pair.image)
    check_same_grid(volume.grid, grid)
    return volume


def remapped(labels: np.ndarray, remap: Mapping[int, int]) -> np.ndarray:
    """Return labels with new values, all replaced at once: `{1: 2, 2: 1}` swaps two values."""
    result = labels.copy() if remap else labels
    for old, new in remap.items():
        result[labels == old] = new
    return result


def label_values(pairs: list[FilePair]) -> list[int]:
    """Return all label values of the references but 0.

    Raises:
        UserError: a file cannot be read, or all references are empty.
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
    """Return the NIfTI files of a folder by their name without suffix, sorted.

    Raises:
        UserError: the folder does not exist, or has two files of one name.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: the folder does not exist; give the one with the NIfTI files")
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir()):
        suffix = suffix_of(path.name, label_folder_suffixes())
        if suffix and not path.name.startswith("."):
            case = path.name.removesuffix(suffix)
            if case in files:
                raise UserError(f"{folder}: {files[case].name} and {path.name} are both of case {case}; keep one")
            files[case] = path
    return files
