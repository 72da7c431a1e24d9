"""The words of ours in the recipes for clusters are words that the command takes."""

import re
import shlex
from pathlib import Path

from sam2_3dmed_jax.commands.arguments import parser
from sam2_3dmed_jax.commands.experiment_files import read_experiment
from weights_conversion.commands import add_verbs

ROOT = Path(__file__).resolve().parents[2]
RECIPES = (ROOT / "experiments" / "launch" / "README.md").read_text()
README = (ROOT / "README.md").read_text()


def test_every_training_command_in_the_recipes_is_one_that_the_command_line_takes(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"(?:sam2-3dmed|--) (train .+?)(?:'?\n)", RECIPES)
    assert len(commands) == 4  # this machine, a TPU slice, GKE, slurm
    commands += re.findall(r"local.py --processes 2 -- (train .+)", README)
    assert len(commands) == 5
    for line in commands:
        options, rest = parser(add_verbs).parse_known_args(shlex.split(line))
        config = read_experiment(options.experiment, rest)
        assert config.data.path.endswith("data/prepared"), line


def test_the_recipes_say_which_of_them_has_been_run():
    assert "have not been run here" in RECIPES
    for tool in ("queued-resources", "xpk workload create", "srun"):
        assert tool in RECIPES
