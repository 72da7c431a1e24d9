"""Atomic writing of files and folders: each is complete under its final name, or does not exist.

Writers work under a temporary name in the same folder and rename it at the end. Temporary names start with a dot and
contain `UNFINISHED`; only a killed process leaves one behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.local_paths import check_local

UNFINISHED = ".tmp"
GIVE_ROOM = "give a folder with room and write access"
# TensorStore reports these as a ValueError whose text is pages long.
_KNOWN_REASONS = ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system")

FilePath = str | os.PathLike[str]

_unfinished: set[Path] = set()  # temporary files and folders that this process is writing


def delete_unfinished() -> None:
    """Delete what this process has not finished, before it ends without running the `finally` blocks."""
    for temporary in list(_unfinished):
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(path: FilePath, hint: str = GIVE_ROOM, errors: type[Exception] = OSError) -> Iterator[None]:
    """Turn errors of the block, which writes `path`, into one sentence.

    Args:
        path: the file or folder that the message names.
        hint: how to fix it.
        errors: the exceptions that mean a failed write; `Exception` for Orbax, which raises many kinds.

    Raises:
        UserError: `path` cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except errors as error:
        raise UserError(f"{path} cannot be written ({_reason(error)}); {hint}") from error


def write_text(path: FilePath, text: str, hint: str = GIVE_ROOM, keep_unchanged: bool = False) -> None:
    """Write a text file as UTF-8. When several processes write one file at the same time, the last one wins.

    Args:
        path: the file; its folder is created.
        text: the content.
        hint: how to fix a failure.
        keep_unchanged: leave a file that has this content already as it is.

    Raises:
        UserError: the file cannot be written.
    """
    content = text.encode()
    if keep_unchanged:
        with contextlib.suppress(OSError):
            if Path(path).read_bytes() == content:
                return
    with atomic_path(path, hint=hint) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_path(path: FilePath, suffix: str = "", hint: str = GIVE_ROOM) -> Iterator[Path]:
    """Yield a temporary file to write, and rename it to `path` when the block ends without an error.

    Args:
        path: the file; its folder is created.
        suffix: suffix of the temporary name, for libraries that choose the format by it.
        hint: how to fix a failure.

    Raises:
        UserError: the block raises an OSError, or the file cannot be renamed; nothing is left behind.
    """
    with write_errors(path, hint), atomic_paths(hint) as temporary_path:
        yield temporary_path(path, suffix)


@contextlib.contextmanager
def atomic_paths(hint: str = GIVE_ROOM) -> Iterator[Callable[..., Path]]:
    """Yield a function from the path of a file, and optionally a suffix, to the temporary file to write in its place.

    The files are renamed in the order of the calls when the block ends without an error; otherwise all are deleted.

    Raises:
        UserError: a file cannot be written; the call of the function raises it, before any work.
    """
    temporaries: dict[Path, Path] = {}
    created: list[Path] = []

    def temporary_path(path: FilePath, suffix: str = "") -> Path:
        check_local(path)
        target = Path(path)
        if target.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file")
        temporary = _temporary_name(target, suffix=suffix)
        with write_errors(path, hint):
            created.extend(_make_parents(target))
            _unfinished.add(temporary)
            temporary.touch(exist_ok=False)
        temporaries[target] = temporary
        return temporary

    complete = False
    try:
        yield temporary_path
        for target, temporary in temporaries.items():
            with write_errors(target, hint):
                os.replace(temporary, target)
        complete = True
    except UserError as error:
        message = str(error)
        for target, temporary in temporaries.items():
            message = message.replace(str(temporary), str(target))
        if message == str(error):
            raise
        raise UserError(message) from error.__cause__
    finally:
        _unfinished.difference_update(temporaries.values())
        if not complete:
            for temporary in temporaries.values():
                temporary.unlink(missing_ok=True)
            _remove_empty(created)


@contextlib.contextmanager
def atomic_folder(path: FilePath, replace: bool = False, writer: bool = True, tag: str | None = None) -> Iterator[Path]:
    """Yield a new temporary folder to fill, and rename it to `path` when the block ends without an error.

    Args:
        path: the folder; an existing empty one is replaced.
        replace: whether an existing folder that is not empty is replaced too, once the new one is complete.
        writer: whether this process creates, renames and deletes the folder. Of several processes that fill one folder
            together, exactly one does.
        tag: part of the temporary name, unique by default; processes that fill one folder together pass the same.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
        UserError: `path` is a remote address.
    """
    check_local(path)
    target = Path(os.path.abspath(path))
    temporary = _temporary_name(target, tag)
    if not writer:
        yield temporary
        return
    created: list[Path] = []
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same tag
        created += _make_parents(target)
        _unfinished.add(temporary)
        temporary.mkdir()
        yield temporary
        if replace and target.is_dir():
            replaced = _temporary_name(target)
            target.rename(replaced)
            try:
                os.replace(temporary, target)
            except BaseException:
                replaced.rename(target)
                raise
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(temporary, target)  # fails if `path` is not empty
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(created)
        raise
    finally:
        _unfinished.discard(temporary)


def _temporary_name(target: Path, tag: str | None = None, suffix: str = "") -> Path:
    # File systems limit a name to 255 bytes, so a long one is cut.
    return target.with_name(f".{target.name[:48]}.{tag or uuid.uuid4().hex}{UNFINISHED}{suffix}")


def _make_parents(target: Path) -> list[Path]:
    """Create the folder of `target` and return the folders that did not exist, innermost first."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # another process has written into it
            folder.rmdir()


def _reason(error: BaseException) -> str:
    """Return the reason of a failed write in a few words."""
    cause: BaseException | None = error
    while cause is not None:
        for reason in _KNOWN_REASONS:
            if re.search(reason, str(cause), re.IGNORECASE):
                return reason
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError):
        return error.strerror or " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
