"""Hashes of files, folders, texts and JSON values, in hexadecimal."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.runtime.user_files import check_regular

BLOCK = 1 << 20  # bytes read at a time


def sha256_of_chunks(chunks: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of all chunks, one after the other."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return sha256_of_chunks([text.encode()])


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a value as JSON with sorted keys, so that the order of keys does not matter."""
    return sha256_of_text(json.dumps(value, sort_keys=True))


def sha256_of_file(path: str | os.PathLike[str], after_block: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: the file.
        after_block: called with the size of each block of at most `BLOCK` bytes after it is hashed.

    Raises:
        OSError: the file cannot be read.
        UserError: it is not a regular file.
    """
    return sha256_of_chunks(_blocks(path, after_block))


def sha256_of_folder(folder: Path) -> str:
    """Return the SHA-256 over the relative names and the SHA-256 of all files in a folder and its subfolders.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_of_chunks(
        part
        for file in files
        for part in (file.relative_to(folder).as_posix().encode(), bytes.fromhex(sha256_of_file(file)))
    )


def md5_of_file(path: str | os.PathLike[str], after_block: Callable[[int], None] | None = None) -> str:
    """Return the MD5 of a file, for comparison with a published one; arguments as in `sha256_of_file`."""
    md5 = hashlib.md5(usedforsecurity=False)
    for block in _blocks(path, after_block):
        md5.update(block)
    return md5.hexdigest()


def _blocks(path: str | os.PathLike[str], after_block: Callable[[int], None] | None) -> Iterator[bytes]:
    check_regular(path)
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            yield block
            if after_block:
                after_block(len(block))
