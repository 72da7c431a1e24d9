"""Experiment files of this repository have the documented settings, and can import files from their folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.config import UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.volume.intensity import WINDOWS
from sam2_3dmed_jax.volume.label_classes import class_sets, declared_classes, prompted_targets

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
WINDOW = {"spleen": "soft_tissue", "lung": "lung_medsam", "pancreas": "soft_tissue"}


@pytest.mark.parametrize("task", WINDOW)
def test_an_experiment_has_the_papers_settings_and_a_flag_sets_its_initial_weights(task: str):
    config = read_experiment(str(EXPERIMENTS / f"{task}.py"), ["--model.init", "CKPT", "--data.path", "DATA"])
    assert (config.model.init, config.data.path) == ("CKPT", "DATA")
    assert config.model.srpp and config.model.bd and config.data.slices == 12
    assert (config.training.loss.srpp, config.training.loss.bd) == (0.01, 0.1)
    assert config.training.frozen is None  # the default for `model.init`: the encoders
    assert config.data.preprocessing.window == WINDOW[task] and WINDOW[task] in WINDOWS
    assert config.model.slice_position.unit == "mm" and config.data.split.inner_fraction > 0


@pytest.mark.parametrize("task", WINDOW)
def test_the_papers_variant_differs_from_ours_only_where_the_docs_say_so(task: str):
    ours, paper = (read_experiment(str(EXPERIMENTS / f"{task}{which}.py")) for which in ("", "_paper"))
    names, others = (
        set(abstract_model(replace(config.model, preset="nano", image_size=64))[1]) for config in (ours, paper)
    )
    assert {name.rsplit(".", 1)[0] for name in names ^ others} == {"slice_position.to_features"}
    assert (paper.model.slice_position.unit, paper.model.slice_position.scale) == ("slice", 1.0)
    same_model = replace(paper.model, slice_position=ours.model.slice_position, boundary=ours.model.boundary)
    same_data = replace(paper.data, clips=ours.data.clips, prompts=ours.data.prompts)
    same_loss = replace(paper.training.loss, iou=1.0, object_score=1.0)
    same = paper.replace(model=same_model, data=same_data, training=replace(paper.training, loss=same_loss))
    assert same == ours


@pytest.mark.parametrize("task", WINDOW)
def test_the_papers_variant_trains_on_contiguous_clips_with_centre_points_and_bce_plus_dice(task: str):
    paper = read_experiment(str(EXPERIMENTS / f"{task}_paper.py"))
    clips, prompts, loss = paper.data.clips, paper.data.prompts, paper.training.loss
    assert (clips.max_stride, clips.absent_probability, clips.past_end_probability) == (1, 0.0, 0.0)
    assert (prompts.box_prompt_probability, prompts.random_point_probability) == (0.0, 0.0)
    assert (loss.bce, loss.dice, loss.iou, loss.object_score) == (1.0, 1.0, 0.0, 0.0)


def test_the_pancreas_is_trained_as_it_is_prompted():
    config = read_experiment(str(EXPERIMENTS / "pancreas.py"))
    assert config.data.classes == ("1+2", 2)
    prompted = prompted_targets(declared_classes({1: "pancreas", 2: "cancer"}))
    assert [entry.values for entry in class_sets(config.data.classes, {})] == prompted


def test_classes_as_flags_take_values_and_unions():
    config = read_experiment(str(EXPERIMENTS / "spleen.py"), ["--data.classes", "1+2", "2"])
    assert config.data.classes == ("1+2", 2)


def test_an_experiment_imports_files_from_its_own_folder_only(tmp_path: Path):
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


def test_a_unets_experiment_takes_the_fields_of_a_unet_and_no_others():
    file = str(EXPERIMENTS / "unet_demo.py")
    config = read_experiment(file, ["--model.features", "4", "--data.classes", "1", "2"])
    assert isinstance(config.model, UNetConfig) and config.model.features == 4 and config.data.classes == (1, 2)
    with pytest.raises(UserError, match=r"a flag does not fit the experiment: .*--model\.preset"):
        read_experiment(file, ["--model.preset", "nano"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(3)", "fails with SystemExit: 3; correct the experiment file"),
        ("import sys; sys.exit()", "fails with SystemExit; correct the experiment file"),
        ("class Other(BaseException): pass\nraise Other('x')", "fails with Other: x; correct the experiment file"),
        ("def get_config(): raise SystemExit", "fails with SystemExit; correct the experiment file"),
    ],
)
def test_a_file_that_ends_the_process_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str):
    (tmp_path / "e.py").write_text(text)
    with pytest.raises(UserError, match=message):
        read_experiment(str(tmp_path / "e.py"))


def test_ctrl_c_in_a_file_interrupts_the_command(tmp_path: Path):
    (tmp_path / "e.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        read_experiment(str(tmp_path / "e.py"))
