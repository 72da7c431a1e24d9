"""Commands in `experiments/README.md` and `experiments/paper/README.md`: each exists and takes its arguments."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from experiments.paper import export_nnunet, msd, phantom
from experiments.paper.programme import cells
from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.commands.main import parser

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "experiments" / "paper" / "README.md").read_text(encoding="utf-8")
ABOVE = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
LINES, LINES_ABOVE = (
    [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for text in (README, ABOVE)
)
MODULES = {"experiments.paper.phantom": phantom.PhantomOptions, "experiments.paper.msd": msd.MsdOptions}


@pytest.mark.parametrize("line", [*LINES, *LINES_ABOVE])
def test_a_command_takes_its_arguments(line: str):
    program, *words = shlex.split(line)
    if program == "sam2-3dmed":
        options, rest = parser().parse_known_args(words)
        if rest:  # fields of an experiment
            read_experiment(str(ROOT / options.experiment), rest)
    elif words[0] == "-m":
        tyro.cli(MODULES[words[1]], args=words[2:])
    else:
        assert ROOT / words[0] == Path(export_nnunet.__file__)
        tyro.cli(export_nnunet.Export, args=words[1:])
    assert (len(LINES), len(LINES_ABOVE)) == (15, 5)


def test_the_decathlon_programme_reads_what_the_commands_before_it_write():
    written = {shlex.split(line)[-1] for line in LINES if line.startswith("sam2-3dmed download")}
    prepared = [shlex.split(line) for line in LINES if line.startswith("sam2-3dmed prepare")]
    written |= {words[3] for words in prepared}
    raw = {words[2] for words in prepared}
    every = cells(msd.programme(msd.MsdOptions()))
    assert {cell.config.data.path for cell in every} | {cell.config.model.init for cell in every} - {""} == written
    assert {cell.task.raw for cell in every} == raw
    spacing = {words[3]: tuple(map(float, words[5].split(","))) for words in prepared if "--spacing" in words}
    nets = {cell.config.data.path: cell.config.model.spacing for cell in every if cell.config.model.kind == "unet"}
    assert nets == spacing


def test_the_planned_experiment_exists():
    (path,) = re.findall(r"sam2-3dmed plan (\S+)", README)
    assert read_experiment(str(ROOT / path)).model.preset == "sam2.1_hiera_large"


def test_every_file_in_the_readme_is_written():
    from experiments.paper import programme_tables

    source = Path(programme_tables.__file__).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+\.(?:csv|md|html))`", README):
        assert f'"{name}"' in source


def test_the_readme_lists_all_experiments_and_the_right_numbers_of_runs():
    existing = {path.name for path in (ROOT / "experiments").glob("*.py")} - {"decathlon.py"}  # shared by the others
    assert set(re.findall(r"`(\w+\.py)`", ABOVE)) == existing
    every = cells(msd.programme(msd.MsdOptions()))
    trained = [cell for cell in every if cell.variant.kind == "trained" and cell.config.model.kind == "sam2"]
    assert f"{len(every):,} runs" in ABOVE and f"all {len(trained)} runs that train SAM 2" in ABOVE
