"""Experiments and sweeps that commands find by name, in a clone and in an installed wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sam2_3dmed_jax.commands import builtin_experiments
from sam2_3dmed_jax.commands.experiment_files import read_experiment, read_spec
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
MINE = """
from sam2_3dmed_jax.config import ExperimentConfig, TrainingConfig

def get_config():
    return ExperimentConfig(training=TrainingConfig(seed=17))
"""


@pytest.fixture(params=["clone", "wheel"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder without files of experiments; a wheel has the files in the package and no `experiments`."""
    if request.param == "wheel":
        package = tmp_path / "site-packages" / "sam2_3dmed_jax"
        (package / "builtin_experiments").mkdir(parents=True)
        for file in EXPERIMENTS.glob("*.py"):
            (package / "builtin_experiments" / file.name).write_bytes(file.read_bytes())
        monkeypatch.setattr(builtin_experiments, "PACKAGE", package)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_a_name_is_the_experiment_of_the_file_of_this_name(home: Path):
    for name in ("demo", "lung_paper", "unet_pancreas"):
        assert read_experiment(name) == read_experiment(str(EXPERIMENTS / f"{name}.py"))


def test_a_name_is_the_sweep_of_the_file_of_this_name(home: Path):
    assert read_spec("robustness") == read_spec(str(EXPERIMENTS / "sweep_robustness.py"))


def test_an_existing_file_wins_over_a_name_and_a_folder_does_not(home: Path):
    (home / "demo").mkdir()
    assert read_experiment("demo").model.preset == "nano"
    (home / "demo.py").write_text(MINE)
    assert read_experiment("demo.py").training.seed == 17
    (home / "spleen").write_text("a text file")
    with pytest.raises(UserError, match="spleen: the experiment file does not exist"):
        read_experiment("spleen")


def test_an_unknown_name_lists_the_names_of_its_kind(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "liver", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert "demo, lung, lung_paper, pancreas" in error and "unet_spleen" in error and "robustness" not in error
    assert main(["sweep", "demo", "--out", "sweep"]) == 2
    assert capsys.readouterr().err.strip().endswith("memory, robustness")
    assert not any(home.iterdir())


def test_the_list_has_each_name_with_its_summary(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (spleen,) = [line for line in lines if line.split()[0] == "spleen"]
    assert "spleens of the Decathlon (Task09)" in spleen
    names = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {f"{name}.py" for name in names - {"memory", "robustness"}} == {
        path.name for path in EXPERIMENTS.glob("*.py") if not path.stem.startswith(("decathlon", "sweep_"))
    }


def test_copied_experiments_run_in_their_folder_and_are_not_overwritten(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["experiments", "copy", "mine"]) == 0
    assert {file.name for file in Path("mine").iterdir()} == {file.name for file in EXPERIMENTS.glob("*.py")}
    assert read_experiment("mine/lung_paper.py") == read_experiment("lung_paper")
    Path("mine/spleen.py").write_text(MINE)
    assert main(["experiments", "copy", "mine"]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert Path("mine/spleen.py").read_text() == MINE


@pytest.mark.parametrize("words", [["copy"], ["list", "mine"]])
def test_a_missing_or_useless_folder_is_a_mistake(words: list[str], home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["experiments", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: experiments {words[0]}: ")


@pytest.mark.long  # builds a wheel; tools/try_wheel.sh tries one in each run of CI
def test_a_wheel_contains_the_experiments_once_and_no_other_file_of_their_folder(tmp_path: Path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(command, check=True, timeout=500)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    inside = "sam2_3dmed_jax/builtin_experiments/"
    assert {name for name in names if name.startswith(inside)} == {
        inside + path.name for path in EXPERIMENTS.glob("*.py")
    }
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"sam2_3dmed_jax", "weights_conversion"}
