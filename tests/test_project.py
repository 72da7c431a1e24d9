"""Quick start, import time, start time of the command, and the metadata of the installed project."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sam2_3dmed_jax
from sam2_3dmed_jax.commands.main import main

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


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_in_the_readme_exists(verb: str, command_help: str):
    assert re.search(rf"(?<![\w-]){verb}(?![\w-])", command_help), f"{verb} is not in:\n{command_help}"


def test_the_two_quick_start_commands_install_run_the_demo_and_run_the_tests():
    assert code_block("demo command") == "pip install . && sam2-3dmed demo --out demo_run\n"
    assert code_block("test command") == "pip install '.[test]' && python -m pytest\n"


def test_importing_the_package_takes_under_two_seconds_and_no_torch():
    program = (
        "import sys, time; start = time.perf_counter(); import sam2_3dmed_jax; "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    runs = [run("-c", program).split() for _ in range(3)]
    assert {torch for _, torch in runs} == {"False"}
    assert min(float(seconds) for seconds, _ in runs) < 2.0  # the best of three: the machine may be busy


def test_the_version_is_that_of_the_installed_project(capsys: pytest.CaptureFixture[str]):
    version = importlib.metadata.version("sam2-3dmed-jax")
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"sam2-3dmed {version}\n")
    assert sam2_3dmed_jax.__version__ == version


def test_the_installed_project_has_the_command_and_its_licence():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="sam2-3dmed")
    assert command.value == "sam2_3dmed_jax.commands.main:main"
    metadata = importlib.metadata.metadata("sam2-3dmed-jax")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("License-File")) == {"LICENSE", "NOTICE"}
