"""What a newcomer relies on: the README tells the truth, the import is light, and the metadata is right."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_3dmed_jax.commands.experiment_files import read_experiment, read_spec
from sam2_3dmed_jax.commands.main import parser
from sam2_3dmed_jax.evaluation.sweep.factors import check_spec, settings_of
from sam2_3dmed_jax.training.features.choice import trains_from_features

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = sorted(set(re.findall(r"sam2-3dmed ([a-z]+)", README)))


def run(*arguments: str, cwd: Path = ROOT) -> str:
    """Standard output of a fresh Python process that finds this tree's packages first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def code_block(marker: str) -> str:
    """The text of the README's code block under the comment `<!-- marker -->`."""
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no code block under <!-- {marker} -->"
    return found[1]


@pytest.fixture(scope="module")
def command_help() -> str:
    return run("-m", "sam2_3dmed_jax.commands.main", "--help")


def test_the_readme_shows_the_first_commands():
    assert {"demo", "phantom", "train", "predict", "evaluate", "doctor"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_in_the_readme_is_one_of_the_command_line(verb: str, command_help: str):
    assert re.search(rf"(?<![\w-]){verb}(?![\w-])", command_help), f"{verb} is not in:\n{command_help}"


def test_every_command_line_in_the_readme_has_arguments_that_the_command_takes():
    lines = re.findall(r"^sam2-3dmed (.+)$", README, re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        _, rest = parser().parse_known_args(shlex.split(line))
        assert not rest or line.startswith(("train ", "plan ", "sweep ")), (
            line
        )  # an experiment's fields are read with it


def test_every_training_line_in_the_readme_sets_fields_that_there_are_and_the_cached_one_is_cached():
    lines = [shlex.split(line) for line in re.findall(r"^sam2-3dmed (train .+)$", README, re.MULTILINE)]
    cached = []
    for line in lines:
        options, rest = parser().parse_known_args(line)
        config = read_experiment(str(ROOT / options.experiment), rest)
        assert config.data.path in (
            "data/prepared",
            "data/spleen",
            "data/phantom",
        )  # made by lines above
        if config.data.features:
            cached.append(trains_from_features(config))
    assert cached == [True] and len(lines) == 4


def test_every_sweep_line_in_the_readme_is_a_spec_with_cells_and_fields_that_there_are():
    lines = [shlex.split(line) for line in re.findall(r"^sam2-3dmed (sweep .+)$", README, re.MULTILINE)]
    for line in lines:
        options, rest = parser().parse_known_args(line)
        spec = read_spec(str(ROOT / options.spec), rest)
        check_spec(spec)
        assert spec.data == "data/phantom" and len(settings_of(spec)) > 50
    assert len(lines) == 3


def test_the_two_quick_start_commands_install_run_the_demo_and_run_the_tests():
    assert code_block("demo command") == "pip install '.[test]' && sam2-3dmed demo --out demo_run\n"
    assert code_block("test command") == "python -m pytest\n"


def test_the_python_example_in_the_readme_runs(tmp_path: Path):
    assert "dice" in run("-c", code_block("python example"), cwd=tmp_path)


def test_importing_the_package_takes_under_two_seconds_and_no_torch():
    program = (
        "import sys, time; start = time.perf_counter(); import sam2_3dmed_jax; "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    runs = [run("-c", program).split() for _ in range(3)]
    assert {torch for _, torch in runs} == {"False"}
    assert min(float(seconds) for seconds, _ in runs) < 2.0  # the best of three: the machine may be busy


def test_the_installed_project_offers_the_command_under_its_licence():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="sam2-3dmed")
    assert command.value == "sam2_3dmed_jax.commands.main:main"
    metadata = importlib.metadata.metadata("sam2-3dmed-jax")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("License-File")) == {"LICENSE", "NOTICE"}
