"""What `plan` refuses in one line, and what its short flags mean."""

import importlib.util
from dataclasses import replace

import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.commands.plan import read_request
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan import toolchain
from sam2_3dmed_jax.plan.programs import programs
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


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:4xx4", "v9:4x4", "v4:2x2x4", "h100:0", "4x4"])
def test_an_unknown_topology_is_answered_with_the_known_chips(text, experiment, capsys):
    assert main(["plan", experiment, "--topology", text]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line and all(chip in line for chip in PLANNED)


@pytest.mark.parametrize("text", ["h100:12", "a100:2x4"])
def test_gpus_come_in_ones_to_eights_and_in_multiples_of_eight(text):
    with pytest.raises(UserError, match="multiple of 8"):
        parse_topology(text)


def test_more_than_eight_gpus_talk_over_the_machines_adapters():
    assert parse_topology("h100:16").network < parse_topology("h100:8").network


def test_a_gpu_is_described_to_the_compiler_with_its_memory_and_capability():
    target = gpu_target(CHIPS["h100"])
    assert "device_memory_size: 84942979072" in target and "major: 9 minor: 0" in target


@pytest.mark.parametrize("topology, extra", [("v5e:4x4", "[plan]"), ("h100:8", "[plan-gpu]")])
def test_a_compiler_that_is_not_installed_is_named_with_its_extra(topology, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as told:
        toolchain.check(parse_topology(topology))
    assert f"pip install 'sam2-3dmed-jax{extra}'" in str(told.value) and topology in str(told.value)


def test_a_mesh_that_the_chips_do_not_divide_is_refused_as_by_train(experiment):
    config = read_request(experiment, ["--mesh.data", "3"], "nano", "64", "2")
    with pytest.raises(UserError, match="mesh: 3 x 1 does not cover 4 devices"):
        programs(config, "train", [object()] * 4)


def test_an_official_model_is_planned_as_started_from_its_checkpoint_which_need_not_be_here(experiment):
    config = read_request(experiment, [], "sam2.1_hiera_large", "1024", "12")
    assert (config.model.preset, config.model.image_size, config.data.slices) == ("sam2.1_hiera_large", 1024, 12)
    assert config.model.init
    plain = read_request(experiment, ["--model.preset", "sam2.1_hiera_large"], None, None, None)
    assert plain.model == replace(config.model, image_size=None, init="")
    assert not read_request(experiment, [], "nano", None, None).model.init
