"""A real CT goes in and a SAM2-3dMed trained on its own clips segments it: an overfitting check of the whole pipe.

The labels are another model's output, so the Dice here is no performance.
"""

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sam2_3dmed_jax import cli
from sam2_3dmed_jax.evaluation import overlap_metrics

EXPERIMENT = """
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, LossConfig, ModelConfig, SrppConfig, TrainingConfig

def get_config():
    return ExperimentConfig(
        model=ModelConfig(preset="nano", slice_position=SrppConfig(dim=64, layers=1)),
        data=DataConfig(slices=4, rotation=0.0, scaling=0.0, shift=0.02, noise=0.0, intensity=0.0, box=0.0,
                        point_noise=0.3, beyond=0.4, absent=0.15, fold=0, folds=2),
        training=TrainingConfig(steps=400, batch_size=4, learning_rate=2e-3, warmup_steps=30, log_every=20,
                                loss=LossConfig(bce=10.0)),
    )
"""
ORGANS = {1: ("liver", 4), 2: ("spleen", 2)}  # our value: name, value in organs6_from_v1


@pytest.fixture(scope="module")
def abdomen(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in MSD layout whose two cases are the same CT, so that one of two folds trains on it."""
    root = tmp_path_factory.mktemp("abdomen")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    image = nibabel.load(realdata / "abdomen" / "organs6_from_v1.nii.gz")
    stored = np.asarray(image.dataobj)
    labels = np.zeros(stored.shape, np.uint8)
    for value, (_, theirs) in ORGANS.items():
        labels[stored == theirs] = value
    entries = []
    for name in ("abdomen_1", "abdomen_2"):
        shutil.copy(realdata / "abdomen" / "ct.nii.gz", root / "imagesTr" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), root / "labelsTr" / f"{name}.nii.gz")
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    names = {"0": "background", **{str(value): name for value, (name, _) in ORGANS.items()}}
    (root / "dataset.json").write_text(json.dumps({"name": "abdomen", "labels": names, "training": entries}))
    return root


def test_a_model_trained_on_a_real_ct_segments_its_organs_from_one_point_each(abdomen: Path, tmp_path: Path, capsys):
    experiment, run, out = tmp_path / "experiment.py", tmp_path / "run", tmp_path / "seg.nii.gz"
    experiment.write_text(EXPERIMENT)
    assert cli.main(["train", str(experiment), "--out", str(run), "--data.path", str(abdomen)]) == 0

    ct = abdomen / "imagesTr" / "abdomen_1.nii.gz"
    reference = nibabel.load(abdomen / "labelsTr" / "abdomen_1.nii.gz")
    values = np.asarray(reference.dataobj)
    points = []
    for value in ORGANS:
        mask = values == value
        k = int(mask.sum((0, 1)).argmax())
        i, j = central_voxel(mask[:, :, k])
        points += ["--point", f"{i},{j},{k},1,{value}"]
    overlay = tmp_path / "overlay.png"
    arguments = ["predict", str(run / "final"), str(ct), "--out", str(out), "--overlay", str(overlay), *points]
    assert cli.main(arguments) == 0, capsys.readouterr().err

    predicted = nibabel.load(out)
    assert predicted.shape == reference.shape
    np.testing.assert_array_equal(predicted.affine, nibabel.load(ct).affine)
    assert overlay.stat().st_size > 10_000
    found = np.asarray(predicted.dataobj)
    dice = {name: overlap_metrics(found == value, values == value)["dice"] for value, (name, _) in ORGANS.items()}
    print(dice)
    assert min(dice.values()) >= 0.85, dice

    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == 400
    for name in ("loss_seg", "loss_srpp", "loss_bd"):
        assert float(rows[-1][name]) < float(rows[0][name]), name


def central_voxel(mask: np.ndarray) -> tuple[int, int]:
    """The voxel of a 2D mask that is farthest from its border."""
    from scipy.ndimage import distance_transform_edt

    i, j = np.unravel_index(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].argmax(), mask.shape)
    return int(i), int(j)
