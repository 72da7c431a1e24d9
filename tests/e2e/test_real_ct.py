"""A real CT goes through the whole pipe: overfitted to, then segmented from one point an organ, on its own grid.

The references are another model's labels of the very CT that is trained on: this checks the pipe, and says nothing
about performance.
"""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main

pytestmark = pytest.mark.long

EXPERIMENT = """
from sam2_3dmed_jax.config import *

def get_config():
    return ExperimentConfig(
        model=ModelConfig(preset="nano", slice_position=SrppConfig(dim=64, layers=1)),
        data=DataConfig(
            slices=3,
            split=SplitConfig(folds=2),
            clips=ClipConfig(objects=2, past_end_probability=0.25, absent_probability=0.25),
            prompts=PromptConfig(box_prompt_probability=0.0),
            augmentation=AugmentationConfig(rotation=0.0, scaling=0.0, shift=0.0, intensity=0.0, noise=0.0),
            preprocessing=PreprocessingConfig(window="60,300"),
        ),
        training=TrainingConfig(
            steps=360, ema=0.98, batch_size=4, learning_rate=2e-3, warmup_steps=30,
            part_learning_rates=((r"^image_encoder\\.", 0.2),), loss=LossConfig(bce=10.0, bd=0.5),
        ),
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


def test_a_real_ct_is_trained_on_and_segmented_from_one_point_an_organ_on_its_own_grid(
    abdomen: Path, tmp_path: Path, capsys
):
    experiment, run, out = tmp_path / "experiment.py", tmp_path / "run", tmp_path / "seg.nii.gz"
    experiment.write_text(EXPERIMENT)
    assert main(["train", str(experiment), "--out", str(run), "--data.path", str(abdomen)]) == 0

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
    assert main(arguments) == 0, capsys.readouterr().err

    predicted = nibabel.load(out)
    assert predicted.shape == reference.shape
    np.testing.assert_array_equal(predicted.affine, nibabel.load(ct).affine)
    assert overlay.stat().st_size > 10_000
    segmented = np.asarray(predicted.dataobj)
    scores = {name: dice(segmented == value, values == value) for value, (name, _) in ORGANS.items()}
    assert min(scores.values()) >= 0.85, scores


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def central_voxel(mask: np.ndarray) -> tuple[int, int]:
    """The voxel of a 2D mask that is farthest from its border."""
    from scipy.ndimage import distance_transform_edt

    i, j = np.unravel_index(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].argmax(), mask.shape)
    return int(i), int(j)
