"""The Dockerfile: what it copies exists, the extras it installs exist, and its command is one of ours."""

import json
import re
import tomllib
from pathlib import Path

from sam2_3dmed_jax.commands.main import VERBS, parser

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(name: str) -> list[str]:
    """Return the arguments of each instruction of a name."""
    return re.findall(rf"^{name} (.+)$", TEXT, re.MULTILINE)


def test_every_file_that_the_image_copies_exists_and_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in instructions("COPY"):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored


def test_every_extra_that_the_dockerfile_names_exists():
    named = re.findall(r"EXTRAS=([\w,]+)", TEXT)
    assert len(named) == 2  # in the comment for GPUs, and the default
    assert {extra for extras in named for extra in extras.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_the_image_runs_our_command_as_a_user_that_is_not_root():
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["sam2-3dmed"]
    assert "sam2-3dmed" in PROJECT["scripts"]
    assert int(instructions("USER")[-1]) > 0
    assert instructions("VOLUME") == ["/cache"]
    assert "SAM2_3DMED_CACHE=/cache" in instructions("ENV")[0]


def test_the_default_command_is_one_that_the_command_line_takes():
    words = json.loads(instructions("CMD")[0])
    assert words[0] == "serve"
    if "serve" in VERBS:
        parser().parse_args(words)
