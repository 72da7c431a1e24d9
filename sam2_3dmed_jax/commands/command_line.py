"""Parsing, exit codes and signals that all command lines of this project share.

Exit codes: 0 success; 2 a user's mistake (one line on stderr); 1 a bug; 130 interrupted; 143 a training run that
stopped in order after SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar, cast, get_args

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import (
    LINE,
    FileWarning,
    Stopped,
    UserError,
    escaped_lines,
    message_line,
    path_errors_as_mistakes,
)
from sam2_3dmed_jax.runtime import compilations, interrupts
from sam2_3dmed_jax.runtime.compute_dtype import COMPUTE_DTYPES
from sam2_3dmed_jax.runtime.local_paths import check_local

FIELD_FLAGS = "field_flags"  # the field of a verb's options that takes all unknown flags, such as --model.preset
READER = "reader"  # key in the metadata of a field: the function that returns its value from the parsed arguments

_COORDINATES = re.compile(r"-([\d.][\d.eE+-]*)?(,[\d.eE+-]+)+")

Record = TypeVar("Record")


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, like all other errors of the commands."""

    # Returns the help of fields that are flags, of the common ones or of every one; slow, so called for the help only.
    fields_help: Callable[[bool], str] | None = None

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        _print_error("error: ", message, f" (see '{self.prog} --help')")
        raise SystemExit(2)

    def add_fields(self, fields_help: Callable[[bool], str]) -> None:
        """Let the help end with fields that are flags: `--help` with the common ones, `--help-all` with every one."""
        self.fields_help = fields_help
        self.add_argument("--help-all", action=_HelpOnEveryField, help="show this help with every field and exit")

    def print_help(self, file: Any = None, every_field: bool = False) -> None:
        """Print the help, followed by the fields that are flags."""
        super().print_help(file)
        if self.fields_help:
            self._print_message(f"\n{self.fields_help(every_field)}\n", file or sys.stdout)


class _HelpOnEveryField(argparse.Action):
    """`--help-all`, as argparse's own action for `--help`."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.print_help(every_field=True)
        raise SystemExit(0)


def add_compute_dtype(parser: argparse.ArgumentParser) -> None:
    """Define the flag of commands that predict; it has the name of the field `model.compute_dtype`, too."""
    parser.add_argument(
        "--compute-dtype",
        "--model.compute_dtype",
        choices=COMPUTE_DTYPES,
        default="auto",
        help="dtype of computation; auto is bfloat16 on devices that multiply faster in it, and float32 elsewhere",
    )


def add_memory_selection(parser: argparse.ArgumentParser) -> None:
    """Define the flag of commands that predict; it has the name of the field `model.memory_selection`, too."""
    parser.add_argument(
        "--memory-selection",
        "--model.memory_selection",
        choices=get_args(MemorySelection),
        help="memories that a slice sees: of the last slices, the most confident or the most varied ones (default: as "
        "CKPT was trained)",
    )


def add_zoom(parser: argparse.ArgumentParser) -> None:
    """Define the flag of commands that segment from prompts; it is read by `volume.zoom.parse_zoom`."""
    parser.add_argument(
        "--zoom",
        metavar="auto|off|MM",
        help="segment each object in a square region around its prompts, which grows while the mask touches its "
        "border: auto chooses its size, MM is its first side in mm (default: off, whole slices)",
    )


class CheckpointName(str):
    """The `type` of an argument that names a checkpoint, which may be on Hugging Face: `hf://org/repo`."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "") or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Verb(Protocol):
    """The names that the module of a command defines."""

    @property
    def HELP(self) -> str:  # noqa: N802 (a constant of the module)
        """One line for `--help`."""

    @property
    def Options(self) -> type[Any]:  # noqa: N802 (a class of the module)
        """A frozen dataclass whose fields are the arguments."""

    @property
    def add_arguments(self) -> Callable[[Parser], None]:
        """Define the arguments."""

    @property
    def run(self) -> Callable[[Any], None]:
        """Do the work, given the `Options`; heavy imports are inside."""


def add_verbs(parser: Parser, verbs: Mapping[str, Verb]) -> None:
    """Give a parser one subcommand per verb."""
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="print the traceback of an error")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    for name, verb in verbs.items():
        verb.add_arguments(
            subparsers.add_parser(
                name, help=verb.HELP, description=verb.HELP, parents=[common], formatter_class=HelpFormatter
            )
        )


def run_verb(parser: Parser, verbs: Mapping[str, Verb], words: Sequence[str] | None, after_interrupt: str) -> int:
    """Parse a command line, run its verb and return the exit code.

    Args:
        parser: a parser with these verbs.
        verbs: the verbs by name.
        words: the arguments; None: the arguments of the process.
        after_interrupt: what an interruption leaves, for its message.
    """
    namespace, unknown = parser.parse_known_args(joined_coordinates(sys.argv[1:] if words is None else words))
    verb = verbs[namespace.verb]
    if unknown and FIELD_FLAGS not in (field.name for field in dataclasses.fields(verb.Options)):
        parser.error(f"unknown argument '{unknown[0]}'")
    options = read_options(verb.Options, namespace, unknown)

    def work() -> None:
        _check_local_arguments(namespace)
        verb.run(options)

    return exit_code(work, namespace.debug, after_interrupt)


def _check_local_arguments(namespace: argparse.Namespace) -> None:
    """Check that no parsed argument, a path or not, is a remote address; fields of experiments are checked later.

    Raises:
        UserError: one is; the message names the address.
    """
    for value in vars(namespace).values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_local(text, isinstance(text, CheckpointName))


def read_options(kind: type[Record], namespace: argparse.Namespace, unknown: Sequence[str] = ()) -> Record:
    """Return a verb's options record from parsed arguments; lists become tuples.

    Args:
        kind: the dataclass of the options.
        namespace: an attribute for each field without a `READER`, and possibly others.
        unknown: the flags that the parser does not know, for the field `field_flags`.
    """
    arguments = {**vars(namespace), FIELD_FLAGS: list(unknown)}
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type] # any dataclass
        reader = field.metadata.get(READER)
        value = reader(namespace) if reader else arguments[field.name]
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def joined_coordinates(words: Sequence[str]) -> list[str]:
    """Return `--flag -12,30,45` as `--flag=-12,30,45`, since argparse takes a word with a leading minus for a flag."""
    joined: list[str] = []
    for word in words:
        if joined and re.fullmatch("--[^=]+", joined[-1]) and _COORDINATES.fullmatch(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, which schedulers send, for work that cleans up when it is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with interrupts.handled_by(interrupt, signal.SIGTERM):
        yield


def exit_code(work: Callable[[], None], debug: bool, after_interrupt: str) -> int:
    """Do the work of a command, print its error and return its exit code.

    Args:
        work: the command.
        debug: print tracebacks.
        after_interrupt: what an interruption leaves, for its message.
    """
    if not debug:
        # XLA logs an alarm about each compilation of more than two minutes; its errors are also raised. JAX reads the
        # variable when it is imported.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names from files may have characters that the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    interrupted = f"interrupted; {after_interrupt}"
    try:
        interrupting = interrupts.ended_during(compilations.in_progress, interrupted)
        with (
            contextlib.redirect_stdout(cast(Any, _EscapedOutput(sys.stdout))),
            _file_warnings_on_stderr(),
            interrupting,
            path_errors_as_mistakes(),
        ):
            work()
    except UserError as error:
        if debug:
            traceback.print_exc()
        _print_error("error: ", error, hint="" if debug else " (complete with --debug)")
        return 2
    except Stopped as stop:
        print(escaped_lines(f"{stop}; {after_interrupt}"), file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return interrupts.INTERRUPTED
    except SystemExit:  # of a parser
        raise
    except BaseException as error:  # libraries in Rust raise errors that are no `Exception`
        if debug:
            traceback.print_exc()
        _print_error(f"a bug: {type(error).__name__}: ", error, " (run again with --debug and report it)")
        return 1
    return 0


@contextlib.contextmanager
def _file_warnings_on_stderr() -> Iterator[None]:
    """Print each `FileWarning` once, in one line on stderr; other warnings are shown as usual."""
    printed: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", FileWarning)
        show = warnings.showwarning

        def show_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, FileWarning):
                show(message, category, *place, **more)
            elif str(message) not in printed:
                printed.add(str(message))
                _print_error("warning: ", message)

        warnings.showwarning = show_line
        yield


class _EscapedOutput:
    """A text stream in which names from files cannot control the terminal: their control characters are escaped."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; ends of lines and tabs are kept."""
        self._stream.write(escaped_lines(text))
        return len(text)


class _EscapedLog(logging.Formatter):
    """Formats notes of a run as plain lines, as `_EscapedOutput` does."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped_lines(super().format(record))


def _print_error(start: str, message: object, end: str = "", hint: str = "") -> None:
    """Print a message in one line of at most `LINE` characters; `hint` is added if it was cut."""
    print(start + message_line(message, LINE - len(start) - len(end), hint) + end, file=sys.stderr)


def start() -> None:
    """Prepare the process for computation: quiet logs, host memory, and a cache of announced compilations."""
    from absl import logging as absl_logging

    from sam2_3dmed_jax.runtime import compilation_cache, host_memory

    handler = logging.StreamHandler()
    handler.setFormatter(_EscapedLog("%(message)s"))
    logging.basicConfig(handlers=[handler])
    # Orbax logs the errors that it also raises, with pages of tracebacks.
    absl_logging.set_verbosity(absl_logging.FATAL)
    host_memory.keep_freed_memory()
    host_memory.collect_rarely()
    compilation_cache.enable()
    compilations.announce()
