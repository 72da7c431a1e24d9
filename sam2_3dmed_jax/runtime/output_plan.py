"""Plan of the files and folders that a command writes, compared with what it reads before any work begins.

Two paths are the same if they lead to one file on disk: links, hard links and other spellings are resolved.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.errors import UserError, cut, naming
from sam2_3dmed_jax.runtime.local_paths import check_local

FilePath = str | os.PathLike[str]
Identity = tuple[int, int] | str  # device and inode of a file that exists, otherwise its resolved path

_PATH = 120  # characters of a path in a message


@dataclass(frozen=True)
class Input:
    """A file or folder that a command reads.

    Attributes:
        name: flag or argument, for messages.
        path: of the file or folder.
        files: returns the files that are read, for an input of several files; None: the file, or all in the folder.
    """

    name: str
    path: FilePath
    files: Callable[[], Iterable[FilePath]] | None = None


@dataclass(frozen=True)
class OutputFile:
    """A file that a command writes.

    Attributes:
        name: flag or argument, for messages; "": the path is enough.
        path: of the file.
    """

    name: str
    path: FilePath


@dataclass(frozen=True)
class OutputFolder:
    """A folder that a command fills.

    Attributes:
        name: flag or argument, for messages; "": the path is enough.
        path: of the folder.
        owns: names of the files and folders in it that the command writes; None: all of it.
    """

    name: str
    path: FilePath
    owns: Collection[str] | None = None


Output = OutputFile | OutputFolder


def check_outputs(outputs: Sequence[Output], inputs: Sequence[Input] = ()) -> None:
    """Check that all outputs can be written, and that none replaces an input or another output.

    Args:
        outputs: all files and folders that the command writes.
        inputs: all files and folders that the command reads; those that do not exist are reported when they are read.

    Raises:
        UserError: an output is a folder where a file is expected or the other way, is not writable, is or would replace
            an input, or is or contains another output.
    """
    for output in outputs:
        with naming(output.name) if output.name else nullcontext():
            _check_place(output)
    claims = [claim for output in outputs for claim in _claims(output)]
    _compare_outputs(claims)
    existing = [claim for claim in claims if os.path.exists(claim.path)]
    if existing:
        for each in inputs:
            _compare_input(existing, each)


@dataclass(frozen=True)
class _Claim:
    """A path that a command replaces, with everything in it."""

    output: Output
    path: str
    real: str
    identity: Identity

    def contains(self, real: str) -> bool:
        """Return whether a resolved path is this one or in it."""
        return real == self.real or real.startswith(os.path.join(self.real, ""))

    def error(self, what: str) -> UserError:
        prefix = f"{self.output.name}: " if self.output.name else ""
        kind = "file" if isinstance(self.output, OutputFile) else "folder"
        return UserError(f"{prefix}{cut(self.path, _PATH)} {what}; give another {kind}")


def _claims(output: Output) -> Iterator[_Claim]:
    paths = [os.fspath(output.path)]
    if isinstance(output, OutputFolder) and output.owns is not None:
        paths = [os.path.join(paths[0], name) for name in output.owns]
    for path in paths:
        yield _Claim(output, path, os.path.realpath(path), _identity(path))


def _compare_outputs(claims: Sequence[_Claim]) -> None:
    """Raise `UserError` if two outputs are the same, or one is in the other."""
    known: dict[Identity, _Claim] = {}
    for claim in claims:
        other = known.setdefault(claim.identity, claim)
        if other is not claim:
            raise claim.error(f"is the same file as {other.output.name or cut(other.path, _PATH)}")
    places = {claim.real: claim for claim in claims}
    for claim in claims:
        for folder in Path(claim.real).parents:
            if outer := places.get(str(folder)):
                raise claim.error(f"is in {outer.output.name or cut(outer.path, _PATH)}, another output")


def _compare_input(claims: Sequence[_Claim], each: Input) -> None:
    """Raise `UserError` if an output that exists is an input, contains it, or is one of its files."""
    if not os.path.exists(each.path):
        return
    real, identity = os.path.realpath(each.path), _identity(each.path)
    folder = real if os.path.isdir(real) else os.path.dirname(real)
    inside = []
    for claim in claims:
        if claim.identity == identity:
            raise claim.error(f"is {each.name} itself, which would be replaced")
        if claim.contains(real):
            raise claim.error(f"contains {each.name}, which would be replaced")
        if claim.real.startswith(os.path.join(folder, "")) and (each.files or os.path.isdir(real)):
            inside.append(claim)
    if not inside:
        return
    try:
        files = each.files() if each.files else _files_in(real)
    except UserError:  # a damaged input is reported when it is read
        return
    read = {_identity(file): os.path.realpath(file) for file in files}
    for claim in inside:
        if claim.identity in read or any(claim.contains(file) for file in read.values()):
            raise claim.error(f"is a file of {each.name}, which would be replaced")


def _files_in(folder: str) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        yield from (os.path.join(place, name) for name in names)


def _identity(path: FilePath) -> Identity:
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _check_place(output: Output) -> None:
    """Check that a file or folder can be written at its path.

    Raises:
        UserError: another kind of file is there, or the folder above it is not one or not writable.
    """
    check_local(output.path)
    path = Path(os.path.realpath(output.path))
    shown = cut(os.fspath(output.path), _PATH)
    try:
        try:
            mode: int | None = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            mode = None
        if isinstance(output, OutputFile):
            if mode is not None and stat.S_ISDIR(mode):
                raise UserError(f"{shown} is a folder; give the name of a file")
            if mode is not None and not stat.S_ISREG(mode):
                raise UserError(f"{shown} is a device or pipe; give the name of a file")
            folder = path.parent
        else:
            if mode is not None and not stat.S_ISDIR(mode):
                raise UserError(f"{shown} is a file; give a folder")
            # A folder that is replaced needs the one above it.
            folder = path if mode is not None and output.owns is not None else path.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        above = cut(str(folder), _PATH)
        if not folder.is_dir():
            raise UserError(f"{shown} cannot be written, because {above} is a file; give another path")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{shown} cannot be written, because {above} is not writable; give another path")
    except OSError as error:  # a loop of links, a name that is too long, or a folder that may not be entered
        raise UserError(f"{shown} cannot be written ({error.strerror}); give another path") from error
