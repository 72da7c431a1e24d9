"""Help of the commands whose fields are flags: the common fields by topic, and every field with its meaning."""

import dataclasses
import re

import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import ExperimentConfig, SweepSpec

RECORDS = {"train": ExperimentConfig(), "plan": ExperimentConfig(), "sweep": SweepSpec()}
FIELD = re.compile(r"^  --(\S+)", re.MULTILINE)


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 0
    return capsys.readouterr().out


def paths(record: object, start: str = "") -> set[str]:
    """The names of all fields of a record and of its groups."""
    found = set()
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        found |= paths(value, f"{start}{field.name}.") if dataclasses.is_dataclass(value) else {start + field.name}
    return found


@pytest.mark.parametrize("verb", RECORDS)
def test_help_shows_fifteen_common_fields_under_topics(verb: str, capsys: pytest.CaptureFixture[str]):
    shown = help_of(capsys, verb, "--help").partition("Every field of ")[2]
    names, known = FIELD.findall(shown), paths(RECORDS[verb])
    assert len(names) == len(set(names)) == 15 and set(names) <= known
    assert f"the common 15 of {len(known)}; --help-all shows all" in shown
    assert len(re.findall(r"^[A-Z][a-z ]+:$", shown, re.MULTILINE)) >= 3


@pytest.mark.parametrize("verb", RECORDS)
def test_help_all_shows_every_field(verb: str, capsys: pytest.CaptureFixture[str]):
    assert set(FIELD.findall(help_of(capsys, verb, "--help-all"))) >= paths(RECORDS[verb])


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_every_field_has_a_meaning_in_the_help(verb: str, capsys: pytest.CaptureFixture[str]):
    shown = help_of(capsys, verb, "--help-all").partition("Every field of ")[2]
    assert re.findall(r"^  --\S+(?: [^\s(]\S*)*\s+\(default.*", shown, re.MULTILINE) == []


def test_the_help_of_train_gives_unit_and_default_of_a_field(capsys: pytest.CaptureFixture[str]):
    text = " ".join(help_of(capsys, "train", "--help").split())
    assert "EXPERIMENT.py" in text
    assert "--data.slices INT D: slices of a clip (default: 6)" in text and "--training.seed INT" in text


def test_the_help_of_train_lists_the_fields_of_both_kinds_of_model(capsys: pytest.CaptureFixture[str]):
    text = help_of(capsys, "train", "--help-all")
    assert "--model.preset" in text and "--model.patch" in text and "--data.prompts.box_prompt_probability" in text
