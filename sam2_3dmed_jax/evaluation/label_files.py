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
from sam2_3dmed_jax.volume.case_files import case_files, list_names
from sam2_3dmed_jax.volume.formats import label_folder_suffixes
from sam2_3dmed_jax.volume.geometry import Grid, Volume, to_frame_of
from sam2_3dmed_jax.volume.io import open_labels, read_grid, read_volume
from sam2_3dmed_jax.volume.label_layers import LabelLayers, grid_of_labels
from sam2_3dmed_jax.volume.modality import ModalitySources
from sam2_3dmed_jax.volume.nearest_grid import onto_grid

STEP = "step_"  # before the number of an interaction, in names of folders


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
        endings = ", ".join(label_folder_suffixes())
        raise UserError(f"{references}: it has no label map ({endings}); give the folder of reference label maps")
    first = next(iter(reference_files.values())).name
    if not predicted.keys() & reference_files.keys():
        number = len(reference_files)
        raise UserError(
            f"{predictions}: {number} of {number} predictions are missing, first {first}; name each like its reference"
        )
    scans = _scans(images) if images else {}
    if images and not scans.keys() & reference_files.keys():
        raise UserError(
            f"--images: {images} holds no image of a reference, first {first}; name each like its reference"
        )
    pairs = [FilePair(case, path, predicted.get(case), scans.get(case)) for case, path in reference_files.items()]
    return pairs, sorted(predicted.keys() - reference_files.keys())


def find_steps(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
) -> tuple[list[list[FilePair]], list[str]]:
    """Pair the predictions after each interaction, `step_0/CASE.nii.gz`, `step_1/CASE.nii.gz` and so on.

    Args:
        predictions: folder with one folder per interaction, 0 being the initial prompt.
        references: as in `find_pairs`.
        images: as in `find_pairs`.

    Returns:
        The pairs of each interaction, with cases in the same order, and the names of predictions without a reference.

    Raises:
        UserError: a folder is missing, or as in `find_pairs`.
    """
    if not Path(predictions).is_dir():
        raise UserError(
            f"{predictions}: the folder does not exist; give one with {step_folder(0)}, {step_folder(1)}, ..."
        )
    found = [path.name for path in Path(predictions).iterdir() if path.is_dir() and path.name.startswith(STEP)]
    names = [step_folder(number) for number in range(max(len(found), 2))]
    if missing := [name for name in names if name not in found]:
        raise UserError(
            f"{predictions}: --protocol interactive needs the folders {names[0]}, {names[1]}, ... without gaps, each "
            f"with the label maps after so many clicks; {missing[0]} does not exist"
        )
    steps, unused = zip(*(find_pairs(Path(predictions, name), references, images) for name in names), strict=True)
    return list(steps), sorted({case for cases in unused for case in cases})


def step_folder(number: int) -> str:
    """Return the name of the folder of the label maps after an interaction."""
    return f"{STEP}{number}"


def _scans(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the images of a folder by case id, without nnU-Net's channel."""
    scans: dict[str, Path] = {}
    for name, path in by_name(folder).items():
        case = name.removesuffix("_0000")
        if case in scans:
            raise UserError(f"--images: {scans[case].name} and {path.name} are both of case {case}; keep one")
        scans[case] = path
    return scans


def read_pair(pair: FilePair, remap: Mapping[int, int], resample: bool) -> tuple[LabelLayers, LabelLayers, Grid]:
    """Read a prediction and its reference.

    Args:
        pair: their files.
        remap: label values of the prediction, and their new values.
        resample: move a prediction on another grid to the grid of the reference.

    Returns:
        Prediction and reference, and their grid: the reference's, or where it stores only a part of it or none, the
        grid of the image, of the prediction, or one around both.

    Raises:
        UserError: a file cannot be read, or the grids differ without `resample`.
    """
    reference_file = open_labels(pair.reference)
    prediction_file = open_labels(pair.prediction) if pair.prediction else None
    files = [file for file in (reference_file, prediction_file) if file]
    image = read_grid(pair.image) if pair.image and reference_file.partial else None
    grid = grid_of_labels(files, image)
    reference = reference_file.read(grid)
    if prediction_file is None:
        return reference.map_layers(np.zeros_like), reference, grid
    own = grid
    try:
        prediction_file.check(grid)
    except UserError as error:
        if not resample or prediction_file.grid is None:
            raise UserError(f"{error}, or give --resample") from None
        own = prediction_file.grid
    prediction = prediction_file.read(own)
    if own is not grid:
        prediction = prediction.map_layers(lambda layer: onto_grid(layer, own, grid))
    return prediction.map_layers(lambda layer: remapped(layer, remap)), reference, grid


def read_scan(pair: FilePair, grid: Grid, modality: ModalitySources) -> Volume | None:
    """Read the image of a case, whose `modality` is known so far, or return None if it has none.

    Raises:
        UserError: the image cannot be read, or its grid differs from the grid of the reference.
    """
    if pair.image is None:
        return None
    volume = read_volume(pair.image, modality=modality)
    return Volume(to_frame_of(grid, volume.array, volume.grid), grid, volume.modality)


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
        file = open_labels(pair.reference)
        values.update(file.names or (file.read(file.grid).values() if file.grid else ()))
    if not (positive := sorted(value for value in values if value > 0)):
        raise UserError(
            f"{pairs[0].reference.parent}: its label maps are all empty; give references that hold an object"
        )
    return positive


def by_name(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the label maps, or images, of a folder by case id, sorted by name; others are left out with a warning.

    Raises:
        UserError: the folder does not exist, or has two files of one case.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: the folder does not exist; give the one with the image files")
    files = case_files(list_names(folder), label_folder_suffixes(), folder)
    return {case: Path(folder, name) for case, name in files.items()}
