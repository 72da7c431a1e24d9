"""Experiment files (`get_config()`) and sweep files (`get_spec()`), with fields overridden by flags.

Flags are named after the fields, such as `--model.image_size 256`, or `--threshold -1 0 1` for a sweep. Field names of
version 0.1 are accepted in files and flags, with a warning on stderr.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from sam2_3dmed_jax.commands import builtin_experiments
from sam2_3dmed_jax.config import EARLIER_NAMES, EarlierNameWarning, ExperimentConfig, SweepSpec, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.config_check import check_config
from sam2_3dmed_jax.runtime.foreign_errors import foreign

Config = TypeVar("Config", ExperimentConfig, SweepSpec)


def read_experiment(path: str, flags: Sequence[str] = ()) -> ExperimentConfig:
    """Run the `get_config()` of an experiment and apply flags. Its file may import others from its folder.

    Args:
        path: the file, or the name of a built-in experiment.
        flags: words such as `--training.steps 500`.

    Raises:
        UserError: the file does not exist or has no `get_config`, or a flag does not fit the experiment.
    """
    with _earlier_names_on_stderr():
        config = _with_kind_of_model(_run_file(path, "get_config", ExperimentConfig, "experiment"), flags)
        config = _apply_flags(config, _with_current_names(flags), "experiment")
    check_config(config)
    return config


def read_spec(path: str, flags: Sequence[str] = ()) -> SweepSpec:
    """Run the `get_spec()` of a sweep, given by its file or name, and apply flags, as `read_experiment` does.

    Raises:
        UserError: the file does not exist or has no `get_spec`, or a flag does not fit the sweep.
    """
    spec = _apply_flags(_run_file(path, "get_spec", SweepSpec, "sweep"), flags, "sweep")
    check_config(spec)
    return spec


def _run_file(path: str, function_name: str, config_type: type[Config], what: str) -> Config:
    """Return the result of a function in an experiment's Python file.

    Args:
        path: the file, or the name of a built-in one.
        function_name: `get_config` or `get_spec`.
        config_type: the type that the function must return.
        what: what the file defines, for messages.
    """
    file = builtin_experiments.find(path, function_name, what)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        with _imports_from_folder_of(file):
            spec.loader.exec_module(module)
            if not callable(function := getattr(module, function_name, None)):
                raise UserError(
                    f"{path}: it has no {function_name}(); define one that returns {_with_article(config_type)}"
                )
            config = function()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # any error of the user's code, such as the SystemExit of `sys.exit()`
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise UserError(f"{path}: it fails with {text}; correct the {what} file") from error
    if not isinstance(config, config_type):
        returned = type(config).__name__
        raise UserError(f"{path}: {function_name}() returns {returned}; return {_with_article(config_type)}")
    return config


@contextlib.contextmanager
def _imports_from_folder_of(file: Path) -> Iterator[None]:
    """Let imports find the files of a folder, and write none there.

    They are forgotten afterwards, because another folder may have files of the same names.
    """
    folder, before, writes_none = str(file.resolve().parent), set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # no __pycache__ in the folder
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_none
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if os.path.dirname(getattr(sys.modules[name], "__file__", None) or "") == folder:
                del sys.modules[name]


def _with_article(config_type: type) -> str:
    return f"{'an' if config_type.__name__[0] in 'AEIOU' else 'a'} {config_type.__name__}"


def _apply_flags(config: Config, flags: Sequence[str], what: str) -> Config:
    words = [re.sub(r"(^|=)(true|false)$", lambda match: match[0].title(), word) for word in flags]
    output = io.StringIO()

    def mistake(reason: str) -> str:
        # Tyro prints a box, drawn with lines or dashes. The words before its reference to the help are the message.
        printed = re.sub(r"[│╭╮╰╯─]|-{4,}", " ", output.getvalue()).split()
        message = re.split(r"Argument helptext|For full helptext", " ".join(printed))[0].strip()
        return f"a flag does not fit the {what}: {message or reason} (config.py lists the fields)"

    with (
        foreign("tyro", mistake),
        contextlib.redirect_stderr(output),
        contextlib.redirect_stdout(output),
    ):
        return _run_tyro(config, words)


def tyro_help(config: Any) -> str:
    """Return the help of all fields of a record, with its values as defaults."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        _run_tyro(config, ["--help"])
    return output.getvalue().split("\n\n", 3)[-1]  # without the usage line


def _run_tyro(config: Any, words: Sequence[str]) -> Any:
    """Parse flags. The kind of model is fixed by the experiment file, so tyro needs no subcommands to choose one."""
    marked = tyro.conf.configure(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)(type(config))
    return tyro.cli(marked, default=config, args=words, use_underscores=True)


# The rest of this file accepts the field names of version 0.1; see the end of config.py.


def _with_current_names(flags: Sequence[str]) -> list[str]:
    """Return flags with the field names of version 0.1 replaced by today's, with warnings."""
    words: list[str] = []
    for word in flags:
        name, separator, value = word.partition("=")
        path = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and path in EARLIER_NAMES:
            warnings.warn(f"{name} is now --{EARLIER_NAMES[path]}", EarlierNameWarning, stacklevel=2)
            word = f"--{EARLIER_NAMES[path]}{separator}{value}"
        words.append(word)
    return words


def _with_kind_of_model(config: ExperimentConfig, flags: Sequence[str]) -> ExperimentConfig:
    """Return the experiment with a U-Net if `--model.kind unet` asks for one; experiment files decide that now."""
    words = [word for flag in flags for word in flag.split("=", 1)]
    if ("--model.kind", "unet") not in itertools.pairwise(words) or config.model.kind == "unet":
        return config
    warnings.warn("--model.kind unet is now model=UNetConfig() in the experiment", EarlierNameWarning, stacklevel=2)
    return config.replace(model=UNetConfig(compute_dtype=config.model.compute_dtype, init=config.model.init))


@contextlib.contextmanager
def _earlier_names_on_stderr() -> Iterator[None]:
    """Print each warning of an earlier name once, in one line on stderr; leave other warnings as they are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EarlierNameWarning)
        try:
            yield
        finally:
            earlier = [warning for warning in caught if issubclass(warning.category, EarlierNameWarning)]
            for message in dict.fromkeys(str(warning.message) for warning in earlier):
                print(f"warning: {message}", file=sys.stderr)
    for warning in caught:
        if warning not in earlier:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
