"""README and documentation: every command line parses, its fields exist, and the pages link to each other."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from sam2_3dmed_jax.commands.experiment_files import read_experiment, read_spec
from sam2_3dmed_jax.commands.main import parser
from sam2_3dmed_jax.evaluation.sweep.factors import check_spec, settings_of
from sam2_3dmed_jax.training.features.choice import trains_from_features

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Data folders that lines of the pages write.
MADE = ("data/prepared", "data/spleen", "data/phantom", "data/phantom120", "data/ten")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the pages are relative to the repository."""
    monkeypatch.chdir(ROOT)


def command_lines(verb: str = "") -> list[list[str]]:
    """Return the words of every `sam2-3dmed` line in a code block, of one verb or of all."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                _, _, words = line.strip().rpartition("&& ")
                if words.startswith(f"sam2-3dmed {verb}"):
                    lines.append(shlex.split(words)[1:])
    return lines


def test_the_readme_is_short_and_shows_the_first_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 130
    verbs = set(re.findall(r"sam2-3dmed ([a-z]+)", readme))
    assert {"demo", "phantom", "prepare", "convert", "train", "predict", "evaluate", "doctor"} <= verbs


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_command_line_of_the_pages_has_arguments_that_the_command_takes(words: list[str]):
    options, rest = parser().parse_known_args(words)
    if rest:  # fields of an experiment or a sweep
        if words[0] == "sweep":
            read_spec(options.spec, rest)
        else:
            read_experiment(options.experiment, rest)


def test_training_lines_use_data_that_earlier_lines_write_and_one_trains_from_cached_features():
    cached = []
    for words in command_lines("train"):
        options, rest = parser().parse_known_args(words)
        config = read_experiment(options.experiment, rest)
        assert config.data.path in MADE
        if config.data.features:
            cached.append(trains_from_features(config))
    assert cached == [True]


def test_sweep_lines_are_specifications_with_cells():
    lines = command_lines("sweep")
    assert len(lines) == 4
    for words in lines:
        options, rest = parser().parse_known_args(words)
        spec = read_spec(options.spec, rest)
        check_spec(spec)
        if len(spec.memory_selection) > 1:  # docs/explanation/memory-selection.md
            assert spec.data == "data/phantom120" and len(settings_of(spec)) == 3
        else:
            assert spec.data == "data/phantom" and len(settings_of(spec)) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_local_link_of_a_page_leads_to_a_file_of_the_repository(page: Path):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).resolve().exists(), target


def test_every_link_of_the_readme_on_pypi_is_absolute_and_leads_to_a_file_of_the_repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["project"]["urls"]["Repository"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    places = f"{repository}/blob/main/", f"{repository.replace('github.com', 'raw.githubusercontent.com')}/main/"
    own = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://"), target
        own += [target.removeprefix(place) for place in places if target.startswith(place)]
    assert len(own) > 10
    for path in own:
        assert (ROOT / path.partition("#")[0]).exists(), path
