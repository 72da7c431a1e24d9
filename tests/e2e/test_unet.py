"""The U-Net by the commands: trained, stopped and resumed, scored without a prompt, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.evaluation import overlap_metrics
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from tests.helpers.run_files import rows

EXPERIMENT = """
from sam2_3dmed_jax.config import *
def get_config():
    net = UNetConfig(patch=(16, 32, 32), spacing=(8.0, 8.0, 8.0), features=8, blocks=(1, 1, 1))
    return ExperimentConfig(
        model=net,
        data=DataConfig(
            classes=(1,),
            split=SplitConfig(folds=2),
            patches=PatchConfig(foreground_probability=1.0),
            augmentation=AugmentationConfig(rotation=0.0, scaling=0.0, intensity=0.0, gamma=0.0, noise=0.0),
        ),
        training=TrainingConfig(
            steps=50, batch_size=2, learning_rate=1e-2, warmup_steps=5, checkpoint_every=40, log_every=5, images_every=0
        ),
    )
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom and, for the held-out case, the same phantom but for one voxel of the scan; and the run.

    With equal scans, `evaluate` would refuse the held-out case as one that was trained on.
    """
    root = tmp_path_factory.mktemp("unet")
    write_phantom_dataset(root / "data", 1, 0, "spleen", matrix=48)
    record = json.loads((root / "data" / "dataset.json").read_text())
    (one,) = record["training"]
    two = {part: path.replace("0001", "0002") for part, path in one.items()}
    for part in one:
        shutil.copy(root / "data" / one[part], root / "data" / two[part])
    image = nib.load(root / "data" / two["image"])
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] += 1
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), root / "data" / two["image"])
    record |= {"training": [one, two], "numTraining": 2}
    (root / "data" / "dataset.json").write_text(json.dumps(record))
    (root / "unet.py").write_text(EXPERIMENT)
    words = ["train", str(root / "unet.py"), "--data.path", str(root / "data"), "--out", str(root / "run")]
    assert main(words) == 0
    return root


def test_a_phantom_learned_by_heart_is_segmented_without_a_prompt_in_the_automatic_block(files: Path):
    words = ["evaluate", str(files / "run" / "final"), str(files / "data"), "--out", str(files / "scores")]
    assert main([*words, "--save", str(files / "maps")]) == 0
    with (files / "scores" / "cases.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert float(row["dice"]) > 0.8
    (case,) = [case for case in read_dataset(files / "data").cases if case.id == row["case"]]
    volume = read_volume(case.image)
    found, reference = (read_labels(path, volume) for path in (files / "maps" / f"{row['case']}.nii.gz", case.label))
    assert overlap_metrics(found == 1, reference == 1)["dice"] == pytest.approx(float(row["dice"]))
    assert (row["block"], row["protocol"], row["n_prompts"], row["prompt_source"]) == ("automatic", "none", "0", "none")


def test_a_run_resumes_to_the_same_log(files: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(files / "run", run)
    shutil.rmtree(run / "checkpoints" / "50")
    shutil.rmtree(run / "final")
    words = ["train", str(files / "unet.py"), "--data.path", str(files / "data"), "--out", str(run)]
    assert main(words) == 0
    assert rows(run) == rows(files / "run") and float(rows(run)[-1]["loss_ce"]) < float(rows(run)[0]["loss_ce"])


def test_a_protocol_no_classes_and_data_at_another_spacing_are_refused(files: Path, tmp_path: Path, capsys):
    data = str(files / "data")
    for words, sentence in (
        (["evaluate", str(files / "run" / "final"), data, "--protocol", "one-click"], "a U-Net takes no prompts"),
        (["train", str(files / "unet.py"), "--data.path", data, "--data.classes"], "a U-Net has one output per class"),
        (
            ["train", str(files / "unet.py"), "--data.path", str(files / "run" / "data"), "--model.spacing"]
            + ["8", "4", "4"],
            "prepare the dataset with --spacing 8,4,4",
        ),
        (["predict", str(files / "run" / "final"), str(next(files.glob("data/imagesTr/*"))), "--point", "1,1,1"], ""),
    ):
        out = "out.nii.gz" if words[0] == "predict" else "out"
        assert main([*words, "--out", str(tmp_path / out)]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / out).exists()
