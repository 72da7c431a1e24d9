"""MkDocs hook: fills the reference pages with the commands' own help texts, so that they cannot differ."""

from __future__ import annotations

import os
import re
import subprocess
import sys

COMMAND = [sys.executable, "-m", "sam2_3dmed_jax"]
FIELDS = "Every field of "  # starts the help of the fields
COMMANDS, CONFIGURATION = "<!-- generated: commands -->", "<!-- generated: configuration -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the two markers of the reference pages; called by MkDocs for each page."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(_section(verb) for verb in _verbs()))
    if CONFIGURATION in markdown:
        fields = [f"## {title}\n\n{_code(_fields(verb))}" for verb, title in (("train", "train"), ("sweep", "sweep"))]
        markdown = markdown.replace(CONFIGURATION, "\n".join(fields))
    return markdown


def _help(verb: str = "", flag: str = "--help") -> str:
    environment = {**os.environ, "COLUMNS": "84", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([*COMMAND, *verb.split(), flag], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def _verbs() -> list[str]:
    return re.findall(r"^    ([a-z]+)\s", _help().partition("VERB\n")[2], re.MULTILINE)


def _section(verb: str) -> str:
    text = _help(verb)
    if verb in ("train", "sweep", "plan"):  # their fields are on the page of the configuration
        text = text.partition(FIELDS)[0]
    return f"## {verb}\n\n{_code(text)}"


def _fields(verb: str) -> str:
    return FIELDS + _help(verb, "--help-all").partition(FIELDS)[2]


def _code(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"
