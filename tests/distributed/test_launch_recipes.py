"""Recipes for clusters: their `sam2-3dmed` commands are valid."""

import os
import re
import shlex
from pathlib import Path

from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.commands.main import parser

ROOT = Path(__file__).resolve().parents[2]
RECIPES = (ROOT / "experiments" / "launch" / "README.md").read_text()
HOW_TO = (ROOT / "docs" / "how-to" / "several-processes.md").read_text()


def test_every_training_command_in_the_recipes_is_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"(?:sam2-3dmed|--) (train .+?)(?:'?\n)", RECIPES)
    assert len(commands) == 4  # this machine, a TPU slice, GKE, slurm
    commands += re.findall(r"local.py --processes 2 -- (train .+)", HOW_TO)
    assert len(commands) == 5
    for line in commands:
        words = [os.path.expanduser(word) for word in shlex.split(line)]  # as a shell expands ~
        options, rest = parser().parse_known_args(words)
        config = read_experiment(options.experiment, rest)
        assert config.data.path.endswith("data/prepared"), line


def test_the_recipes_report_which_of_them_have_been_run():
    assert "have not been run here" in RECIPES
    for tool in ("queued-resources", "xpk workload create", "srun"):
        assert tool in RECIPES
