"""Atomic file writing: a file is complete under its final name, or it does not exist."""

from __future__ import annotations

import uuid
from pathlib import Path

UNFINISHED = ".tmp"  # suffix of files before they are renamed


def replace_text(file: Path, text: str) -> None:
    """Write a text under a temporary name, then rename it.

    The temporary name is unique to the writer: several processes may write one file at a time, and the last one wins.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        temporary.write_bytes(text.encode())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
