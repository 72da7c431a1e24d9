"""What the index says of the dataset that it was made from, and the check of an archive that is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.data.archive import KNOWN_MD5, archive_md5
from sam2_3dmed_jax.data.datasets import Dataset, fingerprint
from sam2_3dmed_jax.data.prepare.folder import write_whole

Progress = Callable[[str, int, int, str], None]  # (what, done, total, note)
ARCHIVE = "archive.json"
_ORIGIN = ("description", "reference", "licence", "license", "release", "relase")  # MSD's Task07 spells it so


def source_record(dataset: Dataset, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Ids, fingerprint, licence; of an archive its name, and its MD5 where the published one is known.

    The MD5 is kept in `out` with the archive's size and time, since reading 12 GB once is enough.
    """
    record: dict[str, Any] = {name: dataset.record[name] for name in _ORIGIN if name in dataset.record}
    record |= {"ids": [case.id for case in dataset.cases], "fingerprint": fingerprint(dataset)}
    if dataset.archive is None:
        return record
    record["archive"] = os.path.basename(dataset.archive)
    if record["archive"] in KNOWN_MD5:
        stat, file = os.stat(dataset.archive), out / ARCHIVE
        stamp = [stat.st_size, stat.st_mtime_ns]
        try:
            known = json.loads(file.read_text())
            record["md5"] = str(known["md5"]) if known["stamp"] == stamp else None
        except (OSError, ValueError, KeyError, TypeError):
            record["md5"] = None
        if record["md5"] is None:
            told = (lambda done, total: progress("MD5, MB", done >> 20, total >> 20, "")) if progress else None
            record["md5"] = archive_md5(dataset.archive, told)
            write_whole(file, json.dumps({"md5": record["md5"], "stamp": stamp}))
    return record
