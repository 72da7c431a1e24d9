"""Output folder of `prepare`: its settings, the finished cases, and the removal of outdated files.

`prepare.json` has the settings. `cases/ID.json`, the sidecar of a case, marks the case as finished; it is written after
the comparison of its shard. `index.json` marks the whole dataset as finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase
from sam2_3dmed_jax.data.prepared import FORMAT, INDEX, PreparedCase, PrepareSettings, check_case, is_prepared
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.runtime.atomic_files import UNFINISHED, write_errors, write_text
from sam2_3dmed_jax.runtime.folder_lock import is_lock, one_writer
from sam2_3dmed_jax.runtime.user_files import plain, read_json, typed
from sam2_3dmed_jax.volume.modality import dicom_modality

SETTINGS, SHARDS, SIDECARS, TEMPORARY = "prepare.json", "shards", "cases", ".unfinished"
REFUSED = "refused.csv"
PREPARED_FILES = (SETTINGS, SHARDS, SIDECARS, TEMPORARY, INDEX, REFUSED)  # what `prepare` writes in the folder
# Why a case is prepared, for the report.
NEW = "new"
CHANGED = "its files changed"
LOST = "its shard was lost or damaged"
UNDECLARED = "its labels are no longer declared"
REDECLARED = "its declared modality changed"
FileStamps = dict[str, list[int]]  # bytes and time of modification (ns) of "image" and "label", or of "archive"


@dataclass(frozen=True)
class CaseState:
    """State of a case in the folder: its entry if it is finished, otherwise why it must be prepared."""

    stamps: FileStamps
    entry: PreparedCase | None
    reason: str = ""


@dataclass(frozen=True)
class _Sidecar:
    """The file that marks a case as finished."""

    stamp: FileStamps
    case: PreparedCase


@contextlib.contextmanager
def claim_folder(out: Path, dataset: Dataset, settings: PrepareConfig) -> Iterator[None]:
    """Create the folder, or continue one with the same settings, and lock it against other processes.

    Raises:
        UserError: the folder contains other files, has other settings or another dataset, is in use, or cannot be
            written.
    """
    record = {"format": FORMAT, "dataset": dataset.name, **settings_record(settings)}
    file = out / SETTINGS
    other = UserError(f"{out} contains files that `prepare` did not write; give a new or an empty folder as OUT")
    if out.exists() and not out.is_dir():
        raise other
    with one_writer(out, "give another OUT"):
        if file.exists():
            _check_settings(file, record)
        elif not all(_is_unfinished(path, file) or is_lock(path) for path in out.iterdir()):
            raise other
        with write_errors(out):
            write_text(file, json.dumps(record, indent=1) + "\n", keep_unchanged=True)
            for folder in (SHARDS, SIDECARS, TEMPORARY):
                (out / folder).mkdir(exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(out / TEMPORARY, ignore_errors=True)


def settings_record(settings: PrepareConfig) -> PrepareSettings:
    """Return the settings as they are read back from JSON, without those that were not given."""
    given = {name: value for name, value in asdict(settings).items() if value not in ("", False)}
    return cast(PrepareSettings, plain(given))


def read_case_state(out: Path, dataset: Dataset, case: LabelledCase, modality: str) -> CaseState:
    """Return whether a case is finished, its files have not changed, and its shard has the recorded size.

    Args:
        out: the folder.
        dataset: the source.
        case: of the source.
        modality: that the scans of the source have today.

    Raises:
        UserError: the files of the case cannot be read.
    """
    stamps = _file_stamps(dataset, case)
    file = _sidecar(out, case.id)
    try:
        sidecar = typed(read_json(file, ""), _Sidecar, str(file), "")
        check_case(entry := sidecar.case, str(file))
    except UserError:
        return CaseState(stamps, None, NEW)
    shard = out / entry.shard
    if sidecar.stamp != stamps:
        return CaseState(stamps, None, CHANGED)
    if not shard.is_file() or shard.stat().st_size != entry.bytes:
        return CaseState(stamps, None, LOST)
    if dataset.labels and not set(entry.areas) <= set(dataset.labels):
        return CaseState(stamps, None, UNDECLARED)
    if dicom_modality(entry.modality) != modality:  # values of CT are rounded and clipped, others are not
        return CaseState(stamps, None, REDECLARED)
    return CaseState(stamps, entry)


def mark_finished(out: Path, entry: PreparedCase, stamps: FileStamps) -> None:
    """Write the sidecar of a case, which marks it as finished."""
    write_text(_sidecar(out, entry.id), json.dumps({"stamp": stamps, "case": asdict(entry)}), keep_unchanged=True)


def unknown_cases(out: Path, ids: Collection[str]) -> list[str]:
    """Return the finished cases of the folder whose ids are not in `ids`."""
    return sorted(path.stem for path in (out / SIDECARS).glob("*.json") if path.stem not in ids)


def remove_index(out: Path) -> None:
    """Remove the index, before shards that it lists change."""
    with write_errors(out):
        (out / INDEX).unlink(missing_ok=True)


def remove_leftovers(out: Path, ids: Collection[str]) -> None:
    """Remove unfinished files, and shards and sidecars of cases that are not in `ids`."""
    with write_errors(out):
        for folder, suffix in ((SHARDS, ".arrayrecord"), (SIDECARS, ".json")):
            for path in (out / folder).iterdir():
                if path.name.removesuffix(suffix) not in ids:
                    path.unlink()
        if not ids and is_prepared(out):
            (out / INDEX).unlink()


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Compare the settings of an existing folder.

    Raises:
        UserError: the settings differ, or the file cannot be read.
    """
    fix = f"delete {file.parent} and run the command again"
    existing = typed(read_json(file, fix), dict[str, Any], str(file), fix)
    different = [
        f"{name} was {json.dumps(existing.get(name))} and is now {json.dumps(settings.get(name))}"
        for name in sorted(settings.keys() | existing.keys())
        if existing.get(name) != settings.get(name)
    ]
    if different:
        raise UserError(
            f"{file.parent} was prepared with other settings: {listed(different, separator='; ')}; give another "
            "OUT, or delete the folder"
        )


def _is_unfinished(path: Path, file: Path) -> bool:
    """Return whether a path is a temporary file that a killed process left."""
    return path.name.startswith(f".{file.name}.") and path.suffix == UNFINISHED


def _sidecar(out: Path, case_id: str) -> Path:
    return out / SIDECARS / f"{case_id}.json"


def _file_stamps(dataset: Dataset, case: LabelledCase) -> FileStamps:
    files = {"archive": dataset.archive} if dataset.archive else {"image": case.image, "label": case.label}
    try:
        stats = {part: os.stat(file) for part, file in files.items()}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); unpack the whole dataset") from None
    return {part: [stat.st_size, stat.st_mtime_ns] for part, stat in stats.items()}
