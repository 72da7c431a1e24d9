"""Atomic writing of files and folders: each is complete under its final name, or as it was before.

Writers work under a temporary name in the same folder and rename it at the end. An old file or folder stays until the
new one is complete, and Ctrl-C or SIGTERM during the renames take effect after them. Temporary names start with a dot
and contain `UNFINISHED`; only a killed process leaves one behind.

A folder that is not empty cannot be replaced by a plain rename. Linux exchanges it with the new one in one system call
(`renameat2`); where that does not exist, the old one is moved aside first, and the next writer puts it back if the
process was killed before its second rename.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sam2_3dmed_jax.errors import UserError, disk_reason
from sam2_3dmed_jax.runtime.delayed_signals import signals_delayed
from sam2_3dmed_jax.runtime.local_paths import check_local

UNFINISHED = ".tmp"
GIVE_ROOM = "give a folder with room and write access"
_REPLACED = ".replaced"  # in the name of an old folder that is moved aside
_WAIT_SECONDS = 10.0  # for another thread that is renaming files
_LATE_CHECKS, _LATE_SECONDS = 100, 0.03  # of files that a library writes after it has raised an error


FilePath = str | os.PathLike[str]

_unfinished: set[Path] = set()  # temporary files and folders that this process is writing
_renaming = threading.RLock()  # held during renames that belong together


def delete_unfinished() -> None:
    """Delete what this process has not finished, before it ends without running the `finally` blocks."""
    locked = _renaming.acquire(timeout=_WAIT_SECONDS)
    try:
        for temporary in list(_unfinished):
            _delete(temporary)
    finally:
        if locked:
            _renaming.release()


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
        raise UserError(f"{_finished_name(path)} cannot be written ({_reason(error)}); {hint}") from error


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

    The files are renamed in the order of the calls when the block ends without an error. Otherwise all are deleted, and
    if one cannot be renamed, the others are put back.

    Raises:
        UserError: a file cannot be written, or the disk is full. What the path alone tells is raised by the call of the
            function, before any work.
    """
    temporaries: dict[Path, Path] = {}
    created: list[Path] = []

    def temporary_path(path: FilePath, suffix: str = "") -> Path:
        check_local(path)
        target = Path(path)
        if target.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file")
        if target in temporaries:
            raise UserError(f"{path} would be written twice; give each output its own name")
        temporary = _temporary_name(target, suffix=suffix)
        with write_errors(path, hint):
            _make_parents(target, created)
            temporaries[target] = temporary
            _unfinished.add(temporary)
            temporary.touch(exist_ok=False)
        return temporary

    complete = False
    try:
        yield temporary_path
        _rename_all(temporaries, hint)
        complete = True
    except UserError as error:
        message = str(error)
        for target, temporary in temporaries.items():
            message = message.replace(str(temporary), str(target))
        if message == str(error):
            raise
        raise UserError(message) from error.__cause__
    except OSError as error:
        if not (reason := disk_reason(error)) or not temporaries:
            raise
        *_, target = temporaries
        raise UserError(f"{target} cannot be written ({reason}); {hint}") from error
    finally:
        with _uninterrupted():
            _unfinished.difference_update(temporaries.values())
            if not complete:
                for temporary in temporaries.values():
                    _delete(temporary)
                _remove_empty(created)


@contextlib.contextmanager
def atomic_folder(
    path: FilePath, replace: bool = False, writer: bool = True, tag: str | None = None, late_writers: bool = False
) -> Iterator[Path]:
    """Yield a new temporary folder to fill, and rename it to `path` when the block ends without an error.

    Args:
        path: the folder, or a link to it; an existing empty one is replaced.
        replace: whether an existing folder that is not empty is replaced too, once the new one is complete. The caller
            checks that it holds nothing but its own files.
        writer: whether this process creates, renames and deletes the folder. Of several processes that fill one folder
            together, exactly one does.
        tag: part of the temporary name, unique by default; processes that fill one folder together pass the same.
        late_writers: whether threads of a library may still write into the folder after an error.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
        UserError: `path` is a remote address.
    """
    check_local(path)
    target = Path(os.path.realpath(path))
    temporary = _temporary_name(target, tag)
    if not writer:
        yield temporary
        return
    created: list[Path] = []
    complete = False
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same tag
        _make_parents(target, created)
        _put_back(target)
        _unfinished.add(temporary)
        temporary.mkdir()
        yield temporary
        with _uninterrupted():
            if replace and target.is_dir():
                _exchange(temporary, target)
            else:
                os.replace(temporary, target)  # fails if `path` is not empty
            complete = True
    finally:
        with _uninterrupted():
            _unfinished.discard(temporary)
            _delete(temporary)  # unfinished, or the old folder
            if not complete:
                _remove_empty(created)
        if late_writers and not complete:
            _delete_late_files(temporary)
            _remove_empty(created)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep signals of this thread, and the end of the process by another one, out of renames that belong together."""
    with _renaming, signals_delayed():
        yield


def _rename_all(temporaries: Mapping[Path, Path], hint: str) -> None:
    """Rename temporary files to their targets, or none of them.

    Raises:
        UserError: one cannot be renamed.
    """
    with _uninterrupted():
        # The rename of a single file needs no copy of the old one.
        several = len(temporaries) > 1
        old = {target: _temporary_name(target) for target in temporaries if several and os.path.lexists(target)}
        try:
            for target, kept in old.items():
                with write_errors(target, hint):
                    _keep(target, kept)
            for target, temporary in temporaries.items():
                with write_errors(target, hint):
                    os.replace(temporary, target)
        except BaseException:
            for target, temporary in temporaries.items() if several else ():
                if os.path.lexists(old.get(target, "")):
                    os.replace(old[target], target)
                elif not os.path.lexists(temporary):
                    target.unlink(missing_ok=True)
            raise
        finally:
            for kept in old.values():
                _delete(kept)


def _keep(file: Path, kept: Path) -> None:
    """Give a file a second name, or another name on file systems without hard links."""
    try:
        os.link(file, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):
        os.rename(file, kept)


def _exchange(new: Path, target: Path) -> None:
    """Put a folder in the place of another one, which gets its name."""
    if _exchange_at_once(new, target):
        return
    aside = _aside(target)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise
    os.rename(aside, new)


def _exchange_at_once(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one system call, and return whether that was possible."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _aside(target: Path) -> Path:
    """Return the name of the old folder while the new one gets its name; the same in each process, to find it again."""
    return target.with_name(f".{target.name[:200]}{_REPLACED}{UNFINISHED}")


def _put_back(target: Path) -> None:
    """Give a folder back its name if a process was killed before it had put the new one in its place."""
    if _aside(target).is_dir() and not os.path.lexists(target):
        os.rename(_aside(target), target)


def _temporary_name(target: Path, tag: str | None = None, suffix: str = "") -> Path:
    # File systems limit a name to 255 bytes, so a long one is cut.
    return target.with_name(f".{target.name[:48]}.{tag or uuid.uuid4().hex}{UNFINISHED}{suffix}")


def _finished_name(path: FilePath) -> str:
    """Return a path in a message: unfinished files and folders have the names that they get when they are complete."""
    return re.sub(rf"(^|/)\.([^/]+)\.[0-9a-f]{{32}}{re.escape(UNFINISHED)}[^/]*", r"\1\2", os.fspath(path))


def _make_parents(target: Path, created: list[Path]) -> None:
    """Create the folder of `target`, and first add the folders that do not exist to `created`, innermost first."""
    created[:0] = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)


def _delete(path: Path) -> None:
    """Delete a file or folder, as far as possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _delete_late_files(folder: Path) -> None:
    """Delete a folder again while threads of a library, such as TensorStore, still write into it after its error."""
    atexit.register(_delete, folder)
    absent = 0
    for _ in range(_LATE_CHECKS):
        time.sleep(_LATE_SECONDS)
        absent = 0 if folder.exists() else absent + 1
        if absent > _LATE_CHECKS // 10:
            return
        _delete(folder)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # another process has written into it
            folder.rmdir()


def _reason(error: BaseException) -> str:
    """Return the reason of a failed write in a few words."""
    if reason := disk_reason(error):
        return reason
    if isinstance(error, OSError):
        return error.strerror or " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
