"""The folder that `prepare` fills: whose it is, which cases stand in it, and what does not belong there.

`prepare.json` says with which settings it is filled, `cases/ID.json` that a case is done (written after its shard was
read back), `index.json` that the whole is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.datasets import Case, Dataset
from sam2_3dmed_jax.data.prepared import FORMAT, INDEX, CaseEntry, entry_from_json, is_prepared
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import UNFINISHED, replace_text

SETTINGS, SHARDS, SIDECARS, TEMPORARY = "prepare.json", "shards", "cases", ".unfinished"
NEW, CHANGED, LOST, UNDECLARED = (
    "new",
    "its files changed",
    "its shard was lost or damaged",
    "its labels are declared no more",
)
Stamp = dict[str, list[int]]  # each source file's bytes and time of modification, ns


@dataclass(frozen=True)
class Standing:
    """What of a case is in the folder: its entry if it is done, or else why it is to be done."""

    stamp: Stamp
    entry: CaseEntry | None
    why: str = ""


@contextlib.contextmanager
def claimed(out: Path, dataset: Dataset, settings: PrepareConfig) -> Iterator[None]:
    """Make the folder, or take up one that was begun with the same settings; keeps other processes out.

    Raises:
        UserError: it holds something else, was begun with other settings or from another dataset, is in use, or
            cannot be written.
    """
    ours = {"format": FORMAT, "dataset": dataset.name, **settings_record(settings)}
    file = out / SETTINGS
    if file.exists():
        _check_settings(file, ours)
    elif out.exists() and not (out.is_dir() and all(_is_unfinished(path, file) for path in out.iterdir())):
        raise UserError(f"{out} holds something else than what `prepare` writes; give a new or an empty folder as OUT")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(ours, indent=1) + "\n")
        for folder in (SHARDS, SIDECARS, TEMPORARY):
            (out / folder).mkdir(exist_ok=True)
    with _alone(out):
        try:
            yield
        finally:
            shutil.rmtree(out / TEMPORARY, ignore_errors=True)


def settings_record(settings: PrepareConfig) -> dict[str, Any]:
    """As JSON gives them back."""
    return dict(json.loads(json.dumps(asdict(settings))))


def standing(out: Path, dataset: Dataset, case: Case) -> Standing:
    """Whether a case is done, its files are those that it was made from, and its shard is whole in size.

    Raises:
        UserError: its files are gone.
    """
    stamp = _stamp(dataset, case)
    try:
        record = json.loads(_sidecar(out, case.id).read_text())
        entry, before = entry_from_json(record["case"]), record["stamp"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Standing(stamp, None, NEW)
    shard = out / entry.shard
    if before != stamp:
        return Standing(stamp, None, CHANGED)
    if not shard.is_file() or shard.stat().st_size != entry.bytes:
        return Standing(stamp, None, LOST)
    if dataset.labels and not set(entry.areas) <= set(dataset.labels):
        return Standing(stamp, None, UNDECLARED)
    return Standing(stamp, entry)


def finish_case(out: Path, entry: CaseEntry, stamp: Stamp) -> None:
    """Say that a case is done."""
    write_whole(_sidecar(out, entry.id), json.dumps({"stamp": stamp, "case": asdict(entry)}))


def strangers(out: Path, ids: Collection[str]) -> list[str]:
    """Cases in the folder that are not among these."""
    return sorted(path.stem for path in (out / SIDECARS).glob("*.json") if path.stem not in ids)


def begin_changes(out: Path) -> None:
    """Take the index away before what it names changes."""
    with writing(out):
        (out / INDEX).unlink(missing_ok=True)


def sweep(out: Path, ids: Collection[str]) -> None:
    """Remove shards and sidecars of other cases, and unfinished files."""
    with writing(out):
        for folder, suffix in ((SHARDS, ".arrayrecord"), (SIDECARS, ".json")):
            for path in (out / folder).iterdir():
                if path.name.removesuffix(suffix) not in ids:
                    path.unlink()
        if not ids and is_prepared(out):
            (out / INDEX).unlink()


def write_whole(file: Path, text: str) -> None:
    """Write a text under a temporary name, then rename; a file that holds it already is not touched."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if file.read_bytes() == text.encode():
            return
    with writing(file.parent):
        replace_text(file, text)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around writing: UserError if it fails."""
    try:
        yield
    except OSError as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{out} cannot be written ({reason}); give a folder with room and write access") from error


def _check_settings(file: Path, ours: dict[str, Any]) -> None:
    try:
        theirs = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}); delete {file.parent} and run this again") from None
    different = [
        f"{name} is {json.dumps(theirs.get(name))} there and {json.dumps(ours.get(name))} here"
        for name in sorted(ours.keys() | theirs.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if different:
        raise UserError(
            f"{file.parent} was prepared with other settings: {'; '.join(different)}; give another OUT, or delete it"
        )


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """A lock that ends with the process."""
    import fcntl

    with writing(out):
        file = (out / TEMPORARY / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being prepared by another process; wait for it, or give another OUT") from None
        except OSError:  # a file system without locks
            pass
        yield


def _is_unfinished(path: Path, file: Path) -> bool:
    """Whether a path is what a writer of a file that died left."""
    return path.name.startswith(f".{file.name}.") and path.suffix == UNFINISHED


def _sidecar(out: Path, case_id: str) -> Path:
    return out / SIDECARS / f"{case_id}.json"


def _stamp(dataset: Dataset, case: Case) -> Stamp:
    files = {"archive": dataset.archive} if dataset.archive else {"image": case.image, "label": case.label}
    try:
        found = {part: os.stat(file) for part, file in files.items()}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); unpack the whole dataset") from None
    return {part: [stat.st_size, stat.st_mtime_ns] for part, stat in found.items()}
