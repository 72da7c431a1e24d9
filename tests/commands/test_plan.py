"""The mistakes that `plan` reports in one line, and the meaning of its short flags."""

import importlib.util
from dataclasses import replace

import pytest

from sam2_3dmed_jax.commands.command_line import read_options
from sam2_3dmed_jax.commands.main import main, parser
from sam2_3dmed_jax.commands.plan import Options, experiment_to_plan
from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan import process, toolchain
from sam2_3dmed_jax.plan.programs import programs_to_compile
from sam2_3dmed_jax.plan.topologies import PLANNED, gpu_target, parse_topology
from sam2_3dmed_jax.runtime.chips import CHIPS

EXPERIMENT = """
from sam2_3dmed_jax.config import ExperimentConfig

def get_config():
    return ExperimentConfig()
"""


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT)
    return str(file)


def planned(experiment: str, *words: str) -> ExperimentConfig:
    """Return the experiment that `plan` compiles."""
    namespace, unknown = parser().parse_known_args(["plan", experiment, "--topology", "v5e:4x4", *words])
    return experiment_to_plan(read_options(Options, namespace, unknown))


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:4xx4", "v9:4x4", "v4:2x2x4", "h100:0", "4x4"])
def test_the_message_about_an_unknown_topology_lists_the_known_chips(text, experiment, capsys):
    assert main(["plan", experiment, "--topology", text]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line and all(chip in line for chip in PLANNED)


@pytest.mark.parametrize("text", ["h100:12", "a100:2x4"])
def test_the_number_of_gpus_is_at_most_eight_or_a_multiple_of_eight(text):
    with pytest.raises(UserError, match="multiple of 8"):
        parse_topology(text)


def test_more_than_eight_gpus_communicate_over_the_network_of_the_machines():
    assert parse_topology("h100:16").network < parse_topology("h100:8").network


def test_a_gpu_is_described_to_the_compiler_with_its_memory_and_capability():
    target = gpu_target(CHIPS["h100"])
    assert "device_memory_size: 84942979072" in target and "major: 9 minor: 0" in target


@pytest.mark.parametrize("topology, extra", [("v5e:4x4", "[plan]"), ("h100:8", "[plan-gpu]")])
def test_the_message_about_a_missing_compiler_names_the_extra_to_install(topology, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        toolchain.check(parse_topology(topology))
    assert f"pip install 'sam2-3dmed-jax{extra}'" in str(error.value) and topology in str(error.value)


def test_a_mesh_that_does_not_cover_the_chips_is_refused_as_in_training(experiment):
    config = planned(experiment, "--mesh.data", "3", "--model", "nano", "--image-size", "64", "--slices", "2")
    with pytest.raises(UserError, match="mesh: 3 x 1 does not cover 4 devices"):
        programs_to_compile(config, "train", [object()] * 4)


def test_a_batch_that_the_chips_cannot_share_is_refused_before_the_compiler_starts(experiment, monkeypatch, capsys):
    monkeypatch.setattr(process, "_run", lambda *_: pytest.fail("the compiler was started"))
    assert main(["plan", experiment, "--topology", "v5e:4x4", "--training.batch_size", "24"]) == 2
    assert "training.batch_size: 24 is not divisible by 16 devices" in capsys.readouterr().err


def test_an_official_model_is_planned_as_initialised_from_its_checkpoint_which_need_not_exist(experiment):
    config = planned(experiment, "--model", "sam2.1_hiera_large", "--image-size", "1024", "--slices", "12")
    assert (config.model.preset, config.model.image_size, config.data.slices) == ("sam2.1_hiera_large", 1024, 12)
    assert config.model.init
    plain = planned(experiment, "--model.preset", "sam2.1_hiera_large")
    assert plain.model == replace(config.model, image_size=None, init="")
    assert not planned(experiment, "--model", "nano").model.init
