"""An experiment file (`get_config()`), with fields overridden by flags (`--model.image_size 256`)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tyro

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError


def read_experiment(path: str, flags: Sequence[str] = ()) -> ExperimentConfig:
    """Run an experiment file's `get_config()` and apply flags. The file may import others of its folder.

    Raises:
        UserError: no such file, a file without `get_config`, or a flag that no field takes.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"{path}: there is no such experiment; give a Python file with get_config()")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        with _beside(file):
            spec.loader.exec_module(module)
            config = module.get_config()
    except Exception as error:  # the user's code
        raise UserError(f"{path}: it fails with {type(error).__name__}: {error}; correct the experiment") from error
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"{path}: get_config() returns {type(config).__name__}; let it return an ExperimentConfig")
    words = [re.sub(r"(^|=)(true|false)$", lambda found: found[0].title(), word) for word in flags]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return _flags(config, words)
    except SystemExit as stop:
        # Tyro draws a box, with lines or with dashes: its words up to the help say what is wrong.
        words = re.sub(r"[│╭╮╰╯─]|-{4,}", " ", printed.getvalue()).split()
        told = re.split(r"Argument helptext|For full helptext", " ".join(words))[0].strip()
        raise UserError(f"a flag does not fit the experiment: {told} (config.py lists the fields)") from stop


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


def fields_help() -> str:
    """All fields as flags, with their units and the defaults of an experiment that sets none."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _flags(ExperimentConfig(), ["--help"])
    return printed.getvalue().split("\n\n", 3)[-1]  # without tyro's own usage


def _flags(config: ExperimentConfig, words: Sequence[str]) -> ExperimentConfig:
    return tyro.cli(
        tyro.conf.configure(tyro.conf.FlagConversionOff)(ExperimentConfig),
        default=config,
        args=words,
        use_underscores=True,
    )
