"""Every command in `experiments/README.md` and `experiments/paper/README.md` is there, with arguments that it takes."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from experiments.paper import export_nnunet, msd, phantom
from experiments.paper.programme import cells
from sam2_3dmed_jax.commands.arguments import parser
from sam2_3dmed_jax.commands.experiment_files import read_experiment
from weights_conversion.commands import add_verbs

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "experiments" / "paper" / "README.md").read_text(encoding="utf-8")
ABOVE = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
LINES, LINES_ABOVE = (
    [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for text in (README, ABOVE)
)
MODULES = {"experiments.paper.phantom": phantom.Words, "experiments.paper.msd": msd.Words}


@pytest.mark.parametrize("line", [*LINES, *LINES_ABOVE])
def test_a_command_takes_its_arguments(line: str):
    program, *words = shlex.split(line)
    if program == "sam2-3dmed":
        options, rest = parser(add_verbs).parse_known_args(words)
        if rest:  # fields of an experiment
            read_experiment(str(ROOT / options.experiment), rest)
    elif words[0] == "-m":
        tyro.cli(MODULES[words[1]], args=words[2:])
    else:
        assert ROOT / words[0] == Path(export_nnunet.__file__)
        tyro.cli(export_nnunet.Export, args=words[1:])
    assert (len(LINES), len(LINES_ABOVE)) == (15, 5)


def test_the_decathlon_programme_reads_what_the_lines_before_it_make():
    made = {shlex.split(line)[-1] for line in LINES if line.startswith("sam2-3dmed convert")}
    prepared = [shlex.split(line) for line in LINES if line.startswith("sam2-3dmed prepare")]
    made |= {words[3] for words in prepared}
    raw = {words[2] for words in prepared}
    every = cells(msd.programme(msd.Words()))
    assert {cell.config.data.path for cell in every} | {cell.config.model.init for cell in every} - {""} == made
    assert {cell.task.raw for cell in every} == raw
    spacing = {words[3]: tuple(map(float, words[5].split(","))) for words in prepared if "--spacing" in words}
    nets = {cell.config.data.path: cell.config.model.unet.spacing for cell in every if cell.config.model.kind == "unet"}
    assert nets == spacing


def test_the_experiment_that_is_planned_is_there():
    (path,) = re.findall(r"sam2-3dmed plan (\S+)", README)
    assert read_experiment(str(ROOT / path)).model.preset == "sam2.1_hiera_large"


def test_every_file_that_the_readme_names_is_written():
    from experiments.paper import tables

    source = Path(tables.__file__).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+\.(?:csv|md|html))`", README):
        assert f'"{name}"' in source


def test_the_experiments_and_numbers_of_runs_that_the_readme_names_are_those_that_there_are():
    there = {path.name for path in (ROOT / "experiments").glob("*.py")} - {"decathlon.py"}  # what the others share
    assert set(re.findall(r"`(\w+\.py)`", ABOVE)) == there
    every = cells(msd.programme(msd.Words()))
    trained = [cell for cell in every if cell.variant.kind == "trained" and cell.config.model.kind == "sam2"]
    assert f"{len(every):,} runs" in ABOVE and f"all {len(trained)} runs that train SAM 2" in ABOVE
