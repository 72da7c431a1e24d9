"""Description of the source dataset in the index: ids, fingerprint, licence, and the MD5 of an archive."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, cast

from sam2_3dmed_jax.data.archive import PUBLISHED_MD5, archive_md5
from sam2_3dmed_jax.data.datasets import Dataset, dataset_fingerprint
from sam2_3dmed_jax.data.prepared import DatasetSource
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.runtime.user_files import read_json, typed

ARCHIVE = "archive.json"
# Fields of dataset.json that are copied; MSD's Task07 spells one of them "relase".
_COPIED_FIELDS = ("description", "reference", "licence", "license", "release", "relase")


def source_record(dataset: Dataset, out: Path, progress: Progress | None = None) -> DatasetSource:
    """Return the description of a dataset; the MD5 of an archive is computed if a published one is known.

    The MD5 is stored in `out` with the size and time of the archive, so that 12 GB are read only once.
    """
    copied: dict[str, Any] = {name: dataset.record[name] for name in _COPIED_FIELDS if name in dataset.record}
    ids = [case.id for case in dataset.cases]
    record = cast(DatasetSource, {**copied, "ids": ids, "fingerprint": dataset_fingerprint(dataset)})
    if dataset.archive is None:
        return record
    record["archive"] = os.path.basename(dataset.archive)
    if record["archive"] in PUBLISHED_MD5:
        record["md5"] = _stored_md5(dataset.archive, out / ARCHIVE, progress)
    return record


def _stored_md5(archive: str, file: Path, progress: Progress | None) -> str:
    """Return the MD5 that `file` has for an unchanged archive; otherwise compute and store it."""
    stat = os.stat(archive)
    stamp = [stat.st_size, stat.st_mtime_ns]
    with contextlib.suppress(UserError):
        stored = typed(read_json(file, ""), dict[str, Any], str(file), "")
        if stored.get("stamp") == stamp and isinstance(stored.get("md5"), str):
            return str(stored["md5"])
    md5 = archive_md5(archive, progress)
    write_text(file, json.dumps({"md5": md5, "stamp": stamp}))
    return md5
