"""Images and label maps on one grid that is turned by 45 degrees, in each command that reads two files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.prompts.flags import PromptFlags, gather_prompts
from sam2_3dmed_jax.volume.io import read_volume
from tests.volume.test_same_grid import save

SHAPE = (16, 14, 6)
SCAN = np.random.default_rng(0).integers(-100, 200, SHAPE).astype(np.int16)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[4:11, 5:9, 2:5] = 1  # no symmetry
SEEDS = range(6)  # of the noise: the canonical order of a file at 45 degrees depends on it


def turned(axis: str) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(axis, 45, degrees=True).as_matrix()
    affine[:3, 3] = 12.5, -7.25, 100.125
    return affine


def transposed(voxels: np.ndarray, affine: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same voxels with the axes k, i, j, with rounding errors of a few units of float32 in the affine."""
    noise = np.zeros((4, 4))
    noise[:3, :3] = np.random.default_rng(seed).uniform(-1e-7, 1e-7, (3, 3))
    return voxels.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]] + noise


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_prediction_on_the_turned_grid_of_its_reference_has_a_dice_of_1(tmp_path: Path, axis: str, ending: str):
    for folder in ("preds", "refs", "scans"):
        (tmp_path / folder).mkdir()
    for seed in SEEDS:
        save(tmp_path / "refs" / f"{seed}.nii.gz", LABELS, turned(axis))
        save(tmp_path / "preds" / f"{seed}{ending}", *transposed(LABELS, turned(axis), seed))
        save(tmp_path / "scans" / f"{seed}.nii.gz", *transposed(SCAN, turned(axis), seed))
    folders = ["--predictions", str(tmp_path / "preds"), "--references", str(tmp_path / "refs")]
    words = ["--images", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *folders, *words]) == 0
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        scores = [(row["dice"], float(row["hd95_mm"])) for row in csv.DictReader(file)]
    assert scores == [("1", 0)] * len(SEEDS)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_image_and_label_on_a_turned_grid_are_prepared_on_the_same_voxels(tmp_path: Path, axis: str):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    bright = np.where(LABELS, 500, SCAN - 300).astype(np.int16)  # the label is where the image is bright
    for seed in SEEDS:
        save(tmp_path / "set" / "imagesTr" / f"{seed}.nii.gz", bright, turned(axis))
        save(tmp_path / "set" / "labelsTr" / f"{seed}.nrrd", *transposed(LABELS, turned(axis), seed))
    assert main(["prepare", str(tmp_path / "set"), str(tmp_path / "out"), "--workers", "1"]) == 0
    prepared = read_prepared(tmp_path / "out")
    assert len(prepared.cases) == len(SEEDS)
    for case in prepared.cases:
        values, labels = prepared.read(case, range(case.shape[0]))
        np.testing.assert_array_equal(labels > 0, values == 500)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_mask_on_the_turned_grid_of_the_image_prompts_its_own_voxels(tmp_path: Path, axis: str):
    bright = np.where(LABELS, 500, SCAN - 300).astype(np.int16)
    volume = read_volume(save(tmp_path / "ct.nii.gz", bright, turned(axis)))
    for seed in SEEDS:
        mask = save(tmp_path / "mask.nrrd", *transposed(LABELS, turned(axis), seed))
        (tmp_path / "p.json").write_text(json.dumps({"objects": [{"mask": "mask.nrrd"}]}))
        for flags in (PromptFlags(mask=str(mask)), PromptFlags(prompts=str(tmp_path / "p.json"))):
            prompts = gather_prompts(flags, volume).prompts
            assert [prompt.slice for prompt in prompts] == np.flatnonzero((volume.array == 500).any((1, 2))).tolist()
            for prompt in prompts:
                np.testing.assert_array_equal(prompt.mask, volume.array[prompt.slice] == 500)
