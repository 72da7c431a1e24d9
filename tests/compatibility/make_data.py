"""The script that wrote data/version_0_1.tar.xz, with the code of commit 60e2596 (version 0.1).

    git worktree add ../version_0_1 60e2596
    mkdir -p /data && cd /data
    PYTHONPATH=.../version_0_1 python .../tests/compatibility/make_data.py
    tar --sort=name --mtime=2026-01-01 --owner=0 --group=0 --numeric-owner -cJf version_0_1.tar.xz -C earlier .

The files contain the absolute path of the working directory (split.json, Orbax's commit_success.txt), so it is /data.
Weights of native checkpoints repeat their first 127 values, so that 1.6 million parameters compress to 130 kB.
The run trains only the small parameters of prompts and object pointers, for the same reason.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import nibabel
import numpy as np

from sam2_3dmed_jax import Prompt, VolumePredictor, load_model, new_model, save_model
from sam2_3dmed_jax.cli import main
from sam2_3dmed_jax.config import ModelConfig, PreprocessingConfig, UNetConfig
from sam2_3dmed_jax.errors import Stopped
from sam2_3dmed_jax.experiment import read_experiment
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
from sam2_3dmed_jax.model.sam2_3dmed import random_weights
from sam2_3dmed_jax.sam2.parameters import split
from sam2_3dmed_jax.training.loop import train

PERIOD = 127
EXPERIMENT = '''"""An experiment as version 0.1 wrote it."""

from sam2_3dmed_jax.config import *


def get_config():
    frozen = ("^image_encoder", "^memory_encoder", "^memory_attention", "^sam_mask", "^slice_position", "^boundary")
    return ExperimentConfig(
        model=ModelConfig("nano", 64, slice_position=SrppConfig(dim=16, layers=1)),
        data=DataConfig(
            path="prepared", slices=3, folds=2, split_seed=1, inner_fraction=0.5, stride=2, reverse=0.4, beyond=0.2,
            absent=0.2, box=0.4, point_noise=0.3, flip=0.5, rotation=20.0, scaling=0.2, shift=0.1, intensity=0.2,
            gamma=0.2, noise=0.05, foreground=0.5, workers=1, preprocessing=PreprocessingConfig("60,200"),
        ),
        training=TrainingConfig(
            steps=4, batch_size=2, warmup_steps=1, log_every=1, checkpoint_every=2, keep_checkpoints=1,
            validate_every=4, validation_clips=2, images_every=0, frozen=frozen,
        ),
    )
'''


def compressible(weights):
    """Repeat the first values of each array, with noise so that no zero-initialised fusion stays zero."""
    rng = np.random.default_rng(0)
    new = {}
    for path, value in sorted(weights.items()):
        first = np.asarray(value, np.float32).reshape(-1)[:PERIOD]
        first = first + 0.01 * rng.standard_normal(first.size).astype(np.float32)
        scale = 0.6 if value.ndim > 1 else 1.0
        new[path] = jnp.asarray(scale * np.resize(first, value.shape))
        if path.startswith("sam_mask_decoder.pred_obj_score_head") and value.shape == (1,):
            new[path] = new[path] + 1.0  # the object is on every slice
    return new


def save(model, name):
    info = CheckpointInfo(model.info.model, PreprocessingConfig("60,200"), {"made_by": "a test"})
    save_model(assemble(compressible(split(model)[1]), info), name)
    return load_model(name)


def write_checkpoints():
    """Two native checkpoints and their logits."""
    model = save(new_model("nano", 64, with_3dmed=True, seed=3), "nano_checkpoint")
    slices = np.random.default_rng(1).standard_normal((5, 64, 64, 3)).astype(np.float32)
    prompts = [
        Prompt(object_id=1, slice=2, points=((20.0, 30.0),), labels=(1,)),
        Prompt(object_id=2, slice=2, box=(8.0, 10.0, 40.0, 50.0)),
    ]
    result = VolumePredictor(model).predict(slices, prompts)
    net = UNetConfig(patch=(4, 16, 16), spacing=(5.0, 1.0, 1.0), features=4, blocks=(1, 1), classes=(1, 3))
    config = ModelConfig(kind="unet", unet=net)
    unet = save(assemble(random_weights(config, 3), CheckpointInfo(config)), "unet_checkpoint")
    patches = np.random.default_rng(2).random((1, 4, 16, 16)).astype(np.float32)
    np.savez_compressed(
        "logits.npz",
        nano_mask_logits=np.asarray(result.mask_logits),
        nano_object_score_logits=np.asarray(result.object_score_logits),
        unet_logits=np.asarray(unet(jnp.asarray(patches))),
    )


def write_prepared_folder(raw: Path):
    """Four ellipsoids on noise, in MSD layout, prepared by the command."""
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    rng = np.random.default_rng(4)
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    for i in range(4):
        x, y, z = np.meshgrid(np.arange(32), np.arange(32), np.arange(12), indexing="ij")
        c = rng.uniform(12, 20, 2)
        inside = ((x - c[0]) / 7) ** 2 + ((y - c[1]) / 6) ** 2 + ((z - 5.5 - i / 4) / 3.5) ** 2 < 1
        values = np.where(inside, 120, 20) + 10 * rng.integers(-2, 3, inside.shape)
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), raw / "imagesTr" / f"c{i}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), affine), raw / "labelsTr" / f"c{i}.nii.gz")
    cases = [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(4)]
    labels = {"0": "background", "1": "ball"}
    record = {
        "name": "balls",
        "modality": {"0": "CT"},
        "labels": labels,
        "numTraining": 4,
        "training": cases,
        "test": [],
    }
    (raw / "dataset.json").write_text(json.dumps(record))
    assert main(["prepare", str(raw), "prepared", "--workers", "1"]) == 0


def write_stopped_run(whole: Path):
    """A run that was stopped after step 2 of 4, and the log of the same run without a stop."""
    Path("experiment.py").write_text(EXPERIMENT)
    config = read_experiment("experiment.py", ["--data.box", "0.5"])
    train(config, whole)

    def stop(done, total, metrics):
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(config, "run", stop)
    except Stopped:
        pass
    else:
        raise SystemExit("the run was not stopped")
    shutil.copy(whole / "log.csv", "whole_log.csv")
    for file in Path("run").glob("events*"):
        file.unlink()  # nothing reads TensorBoard's events back


if __name__ == "__main__":
    Path("earlier").mkdir()
    os.chdir("earlier")
    write_checkpoints()
    write_prepared_folder(Path("../raw"))
    write_stopped_run(Path("../whole"))
