"""An experiment file (`get_config()`) or a sweep's (`get_spec()`), with fields overridden by flags.

Such as `--model.image_size 256`, and of a sweep `--threshold -1 0 1`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from sam2_3dmed_jax.config import ExperimentConfig, SweepSpec
from sam2_3dmed_jax.errors import UserError

Config = TypeVar("Config", ExperimentConfig, SweepSpec)


def read_experiment(path: str, flags: Sequence[str] = ()) -> ExperimentConfig:
    """Run an experiment file's `get_config()` and apply flags. The file may import others of its folder.

    Raises:
        UserError: no such file, a file without `get_config`, or a flag that no field takes.
    """
    return _with_flags(_returned(path, "get_config", ExperimentConfig, "experiment"), flags, "experiment")


def read_spec(path: str, flags: Sequence[str] = ()) -> SweepSpec:
    """Run the `get_spec()` of a sweep's file and apply flags, as `read_experiment` does.

    Raises:
        UserError: no such file, a file without `get_spec`, or a flag that no field takes.
    """
    return _with_flags(_returned(path, "get_spec", SweepSpec, "sweep"), flags, "sweep")


def _returned(path: str, name: str, kind: type[Config], what: str) -> Config:
    """What a file's function returns."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"{path}: there is no such {what}; give a Python file with {name}()")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        with _beside(file):
            spec.loader.exec_module(module)
            if not callable(function := getattr(module, name, None)):
                raise UserError(f"{path}: it has no {name}(); define one that returns {_a(kind)}")
            config = function()
    except UserError:
        raise
    except Exception as error:  # the user's code
        raise UserError(f"{path}: it fails with {type(error).__name__}: {error}; correct the {what}") from error
    if not isinstance(config, kind):
        raise UserError(f"{path}: {name}() returns {type(config).__name__}; let it return {_a(kind)}")
    return config


def _with_flags(config: Config, flags: Sequence[str], what: str) -> Config:
    words = [re.sub(r"(^|=)(true|false)$", lambda found: found[0].title(), word) for word in flags]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return _flags(config, words)
    except SystemExit as stop:
        # Tyro draws a box, with lines or with dashes: its words up to the help say what is wrong.
        words = re.sub(r"[│╭╮╰╯─]|-{4,}", " ", printed.getvalue()).split()
        told = re.split(r"Argument helptext|For full helptext", " ".join(words))[0].strip()
        raise UserError(f"a flag does not fit the {what}: {told} (config.py lists the fields)") from stop


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[None]:
    """Let imports find the files of a folder, and forget them afterwards: another may have the same names."""
    folder, before = str(file.resolve().parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if os.path.dirname(getattr(sys.modules[name], "__file__", None) or "") == folder:
                del sys.modules[name]


def fields_help(config: Config) -> str:
    """All fields as flags, with their units and the defaults of an experiment or sweep that sets none."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _flags(config, ["--help"])
    return printed.getvalue().split("\n\n", 3)[-1]  # without tyro's own usage


def _flags(config: Config, words: Sequence[str]) -> Config:
    return tyro.cli(
        tyro.conf.configure(tyro.conf.FlagConversionOff)(type(config)),
        default=config,
        args=words,
        use_underscores=True,
    )
