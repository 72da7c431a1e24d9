"""Scores of DICOM-SEG, RTSTRUCT and segmentations of 3D Slicer, whose segments overlap or have no grid of their own."""

import csv
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.volume.io import read_volume, write_nifti
from tests.helpers.dicom_files import write_series
from tests.helpers.segment_files import (
    rectangle,
    write_segments_by_highdicom,
    write_slicer_segments,
    write_structures,
)

SHAPE = (12, 10, 6)  # i, j, k
ORGAN, LESION = np.zeros((2, *SHAPE), bool)
ORGAN[1:9, 2:8, 1:4] = True
LESION[3:5, 3:6, 2:4] = True
PREDICTED = np.zeros(SHAPE, np.uint8)  # three quarters of the organ's rows, and the lesion
PREDICTED[1:7, 2:8, 1:4] = 1
DICE_OF_ORGAN = 2 * 6 / (6 + 8)
MILLILITRES = 0.7 * 0.8 * 2.5 / 1000  # of a voxel of the series


@pytest.fixture
def affine(tmp_path: Path) -> np.ndarray:
    """Affine of a series in the folder `ct`; there are the folders `refs` and `preds` too."""
    for name in ("refs", "preds", "images"):
        (tmp_path / name).mkdir()
    series = write_series(tmp_path / "ct", array=np.zeros(SHAPE[::-1], np.int16))
    return read_volume(series).grid.affine


def evaluate(folder: Path, *words: str | Path) -> dict[str, dict[str, str]]:
    command = ["evaluate", "--predictions", folder / "preds", "--references", folder / "refs", "--out", folder / "out"]
    assert main([*map(str, command), *map(str, words)]) == 0
    with (folder / "out" / "cases.csv").open(newline="") as file:
        return {row["class"]: row for row in csv.DictReader(file)}


def structures(affine: np.ndarray, path: Path) -> None:
    organ = [rectangle(affine, (0.5, 1.5), (8.5, 7.5), k) for k in range(1, 4)]
    lesion = [rectangle(affine, (2.5, 2.5), (4.5, 5.5), k) for k in range(2, 4)]
    write_structures(path, {1: organ, 2: lesion})


def write_reference(kind: str, folder: Path, affine: np.ndarray) -> None:
    if kind == "segmentation":
        write_segments_by_highdicom(folder / "refs" / "a.dcm", folder / "ct", [ORGAN, LESION])
    elif kind == "structures":
        structures(affine, folder / "refs" / "a.dcm")
    else:
        layers = np.stack([ORGAN, LESION])[:, 1:10, 2:8, 1:5].astype(np.uint8)
        corner = affine.copy()
        corner[:3, 3] = (affine @ [1, 2, 1, 1])[:3]
        write_slicer_segments(
            folder / "refs" / "a.seg.nrrd", layers, corner, [(0, 1, "organ"), (1, 1, "lesion")], (1, 2, 1)
        )


@pytest.mark.parametrize("kind", ["segmentation", "structures", "slicer"])
def test_overlapping_references_are_scored_whole_against_label_maps(tmp_path: Path, affine: np.ndarray, kind: str):
    write_reference(kind, tmp_path, affine)
    write_nifti(tmp_path / "preds" / "a.nii.gz", PREDICTED, affine)
    rows = evaluate(tmp_path, "--classes", "1=organ,2=lesion,1+2=both")
    assert float(rows["organ"]["dice"]) == pytest.approx(DICE_OF_ORGAN)
    assert float(rows["organ"]["volume_ml_reference"]) == pytest.approx(ORGAN.sum() * MILLILITRES)
    assert float(rows["lesion"]["volume_ml_reference"]) == pytest.approx(LESION.sum() * MILLILITRES)
    assert float(rows["both"]["dice"]) == pytest.approx(DICE_OF_ORGAN)


def test_two_segmentations_that_store_different_slices_are_scored_on_a_grid_around_both(
    tmp_path: Path, affine: np.ndarray
):
    write_reference("segmentation", tmp_path, affine)
    shifted = np.roll(ORGAN, 2, axis=2)
    write_segments_by_highdicom(tmp_path / "preds" / "a.dcm", tmp_path / "ct", [shifted])
    rows = evaluate(tmp_path, "--classes", "1=organ")
    assert float(rows["organ"]["dice"]) == pytest.approx(1 / 3)
    assert float(rows["organ"]["volume_ml_prediction"]) == pytest.approx(ORGAN.sum() * MILLILITRES)


def test_contours_without_any_grid_need_the_scans(tmp_path: Path, affine: np.ndarray, capsys):
    for name in ("refs", "preds"):
        structures(affine, tmp_path / name / "a.dcm")
    command = ["evaluate", "--predictions", tmp_path / "preds", "--references", tmp_path / "refs"]
    assert main([*map(str, command), "--out", str(tmp_path / "out")]) == 2
    assert "contours have no voxels of their own; give the scans too (--images)" in capsys.readouterr().err
    write_nifti(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE, np.int16), affine)
    rows = evaluate(tmp_path, "--images", tmp_path / "images")
    assert [row["dice"] for row in rows.values()] == ["1", "1"]
    assert float(rows["2"]["volume_ml_prediction"]) == pytest.approx(LESION.sum() * MILLILITRES)


def test_a_segmentation_on_another_grid_is_refused_or_resampled_on_request(tmp_path: Path, affine: np.ndarray, capsys):
    write_nifti(tmp_path / "refs" / "a.nii.gz", ORGAN.astype(np.uint8), affine)
    moved = affine.copy()
    moved[:3, 3] += 0.1
    layers = ORGAN[None].astype(np.uint8)
    write_slicer_segments(tmp_path / "preds" / "a.seg.nrrd", layers, moved, [(0, 1, "organ")])
    command = ["evaluate", "--predictions", tmp_path / "preds", "--references", tmp_path / "refs"]
    assert main([*map(str, command), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "up to 0.1732 mm away" in error and "--resample" in error
    assert evaluate(tmp_path, "--resample")["1"]["dice"] == "1"
