"""Remote addresses such as `gs://bucket/run` are refused by every command and entry point before any work."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from sam2_3dmed_jax import load_model, segment
from sam2_3dmed_jax.commands.command_line import FIELD_FLAGS, CheckpointName, run_verb
from sam2_3dmed_jax.commands.main import VERBS, main, parser
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, SweepSpec
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.sweep.run import read_sweep
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, save_weights
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.prompts.case_table import read_cases
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.volume.io import read_volume, write_nifti

GS, S3, HUB = "gs://bucket/a", "s3://bucket/a", "hf://organisation/repository"
PARSER = parser()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run each test in an empty folder, in which no folder such as `gs:` may appear."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(":")]


def _parser_of(verb: str) -> argparse.ArgumentParser:
    (verbs,) = (action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction))
    return verbs.choices[verb]


def _takes_text(action: argparse.Action) -> bool:
    return action.nargs != 0 and not action.choices and action.type in (None, str, CheckpointName)


def _words(verb: str, address: str, argument: str) -> list[str]:
    """Return a command line with an address for one argument, and a word for each other one that is required."""
    words = [verb]
    for action in _parser_of(verb)._actions:
        if action.dest == argument or action.required or not action.option_strings:
            value = address if action.dest == argument else next(iter(action.choices or ["x"]))
            words += [*action.option_strings[-1:], str(value)]
    return words


TEXTS = [(verb, action.dest) for verb in VERBS for action in _parser_of(verb)._actions if _takes_text(action)]


@pytest.mark.parametrize(("verb", "argument"), TEXTS)
def test_no_argument_of_a_command_accepts_a_bucket(verb, argument, capsys, monkeypatch, empty_folder):
    monkeypatch.setattr(VERBS[verb], "run", lambda _: pytest.fail("the command started its work"))
    assert run_verb(PARSER, VERBS, _words(verb, GS, argument), "") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {GS} is a remote address") and "gcsfuse" in error and error.count("\n") == 1
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize("address", ["http://127.0.0.1/x", S3, "file:///etc/passwd"])
@pytest.mark.parametrize(
    "words", ["prepare ADDRESS out", "predict ADDRESS ct.nii --point 1,1,1 --out o.nii", "convert x.pt ADDRESS"]
)
def test_addresses_of_every_form_are_refused_in_one_line(words, address, capsys, empty_folder):
    assert main(words.replace("ADDRESS", address).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(empty_folder.iterdir())


def test_the_commands_have_arguments_for_paths():
    assert {("train", "out"), ("predict", "overlay"), ("evaluate", "compare"), ("convert", "destination")} <= {*TEXTS}


@pytest.mark.parametrize(("verb", "argument"), TEXTS)
def test_only_arguments_that_name_a_checkpoint_accept_hugging_face(verb, argument, capsys, monkeypatch):
    (action,) = (action for action in _parser_of(verb)._actions if action.dest == argument)
    monkeypatch.setattr(VERBS[verb], "run", lambda _: None)
    accepted = action.type is CheckpointName
    assert run_verb(PARSER, VERBS, _words(verb, HUB, argument), "") == (0 if accepted else 2)
    assert ("only a checkpoint has such a name" in capsys.readouterr().err) != accepted


def _text_fields(config: object, prefix: str = "") -> list[str]:
    names, types = [], get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names += _text_fields(value, f"{prefix}{field.name}.")
        elif types[field.name] is str:
            names.append(prefix + field.name)
    return names


@pytest.mark.parametrize("name", _text_fields(ExperimentConfig()))
def test_no_field_of_an_experiment_accepts_a_bucket(name, capsys, empty_folder):
    Path("experiment.py").write_text(
        "from sam2_3dmed_jax.config import ExperimentConfig\ndef get_config(): return ExperimentConfig()\n"
    )
    assert main(["train", "experiment.py", "--out", "run", f"--{name}", GS]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: {GS} is a remote address")
    assert [path.name for path in empty_folder.iterdir()] == ["experiment.py"]


@pytest.mark.parametrize("name", ["checkpoints", *_text_fields(SweepSpec())])
def test_no_field_of_a_sweep_accepts_a_bucket(name, capsys, empty_folder):
    Path("sweep.py").write_text("from sam2_3dmed_jax.config import SweepSpec\ndef get_spec(): return SweepSpec()\n")
    assert main(["sweep", "sweep.py", "--out", "out", f"--{name}", S3]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: {S3} is a remote address")
    assert [path.name for path in empty_folder.iterdir()] == ["sweep.py"]


def test_commands_with_fields_are_those_of_experiments_and_sweeps():
    with_fields = {name for name, verb in VERBS.items() if FIELD_FLAGS in verb.Options.__dataclass_fields__}
    assert with_fields == {"train", "sweep", "plan"}


@pytest.mark.parametrize(("column", "cell"), [("image", GS), ("reference", S3), ("prompts", f"a.json; {GS}")])
def test_a_table_of_cases_with_a_bucket_is_refused_with_its_line(column, cell):
    cells = {"image": "x.nii.gz", column: cell}
    Path("cases.csv").write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")
    with pytest.raises(UserError, match=r"^cases\.csv, line 2: \w+://bucket/a is a remote address"):
        read_cases("cases.csv")


def test_python_entry_points_refuse_a_bucket_and_write_nothing(empty_folder):
    experiment = ExperimentConfig(data=DataConfig(path="data"))
    calls = {
        "load_model": lambda: load_model(GS),
        "save_weights": lambda: save_weights({}, GS, CheckpointInfo(ModelConfig())),
        "segment": lambda: segment(GS, points=[(1, 1, 1)], model="checkpoint"),
        "read_volume": lambda: read_volume(GS),
        "write_nifti": lambda: write_nifti(GS + ".nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4)),
        "read_dataset": lambda: read_dataset(GS),
        "train into": lambda: train(experiment, GS),
        "train on": lambda: train(ExperimentConfig(data=DataConfig(path=GS)), "run"),
        "read_sweep": lambda: read_sweep(SweepSpec(data=GS)),
        "write_phantom_dataset": lambda: write_phantom_dataset(GS, 1),
    }
    for name, call in calls.items():
        with pytest.raises(UserError, match="remote address"):
            call()
            pytest.fail(f"{name} accepts a bucket")
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    "address",
    [
        *("gs://b", "GS://b/c", "s3://b", "memory://x", "az+https://x", "file:///x", Path("gs://bucket/x"), HUB),
        *("http://127.0.0.1/x", "https://host/x", "ftp://host/x"),
    ],
)
def test_addresses_are_recognised_in_every_form(address):
    with pytest.raises(UserError, match="is a remote address"):
        check_local(address)


@pytest.mark.parametrize(("address", "tool"), [(GS, "gcsfuse"), (S3, "pip install awscli"), ("file:///x", "file://")])
def test_the_message_names_a_tool_for_the_store(address, tool):
    with pytest.raises(UserError, match=tool):
        check_local(address)


@pytest.mark.parametrize(
    "path", ["", "x", "/a/b", "a:b", "1=spleen", "./gs:/b", "10,20,30", "60,200", "C:/x", "a/b://"]
)
def test_other_paths_and_texts_are_accepted(path):
    check_local(path)
