"""Experiment files: those of this repository say what they should, and each finds the files beside it."""

from dataclasses import replace
from pathlib import Path

import pytest

from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model
from sam2_3dmed_jax.volume.intensity import WINDOWS

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
WINDOW = {"spleen": "soft_tissue", "lung": "lung_medsam", "pancreas": "soft_tissue"}


@pytest.mark.parametrize("task", WINDOW)
def test_an_organs_experiment_has_the_papers_settings_and_starts_where_a_flag_says(task: str):
    config = read_experiment(str(EXPERIMENTS / f"{task}.py"), ["--model.init", "CKPT", "--data.path", "DATA"])
    assert (config.model.init, config.data.path) == ("CKPT", "DATA")
    assert config.model.srpp and config.model.bd and config.data.slices == 12
    assert (config.training.loss.srpp, config.training.loss.bd) == (0.01, 0.1)
    assert config.training.frozen is None  # with a checkpoint to start from: the encoders
    assert config.data.preprocessing.window == WINDOW[task] and WINDOW[task] in WINDOWS
    assert config.model.slice_position.unit == "mm" and config.data.inner_fraction > 0


@pytest.mark.parametrize("task", WINDOW)
def test_the_papers_variant_differs_from_ours_by_what_the_paper_says_alone(task: str):
    ours, paper = (read_experiment(str(EXPERIMENTS / f"{task}{which}.py")) for which in ("", "_paper"))
    names, others = (
        set(abstract_model(replace(config.model, preset="nano", image_size=64))[1]) for config in (ours, paper)
    )
    assert {name.rsplit(".", 1)[0] for name in names ^ others} == {"slice_position.to_features"}
    assert (paper.model.slice_position.unit, paper.model.slice_position.scale) == ("slice", 1.0)
    same = replace(paper.model, slice_position=ours.model.slice_position, boundary=ours.model.boundary)
    assert paper.replace(model=same) == ours


def test_an_experiment_imports_the_file_beside_it_not_that_of_another_folder(tmp_path: Path):
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "shared.py").write_text(f"SEED = {seed}\n")
        (folder / "mine.py").write_text(
            "from shared import SEED\n"
            "from sam2_3dmed_jax.config import ExperimentConfig, TrainingConfig\n"
            "def get_config():\n    return ExperimentConfig(training=TrainingConfig(seed=SEED))\n"
        )
        assert read_experiment(str(folder / "mine.py")).training.seed == seed
