"""Uploaded images: folders with the files of one NIfTI image or one DICOM series, with a limit on their bytes."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from weakref import WeakValueDictionary

from sam2_3dmed_jax.errors import UserError

MAX_FILES = 5000  # of one upload; a DICOM series of a whole body has about two thousand slices
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
_SUFFIX = re.compile(r"(\.[a-z]{2,5})?\.(gz|bz2)\Z|\.[a-z][a-z0-9]{1,4}\Z")


class Uploads:
    """The uploads of a server. Names of files are replaced, since they may contain the names of patients."""

    def __init__(self, folder: Path, most_bytes: int, kept: int = 20):
        """Use a folder, which is made with the first upload.

        Args:
            folder: of all uploads.
            most_bytes: of the files of one upload together.
            kept: uploads on disk; a further one deletes the oldest.
        """
        self._folder = folder
        self._most_bytes = most_bytes
        self._kept = kept
        self._lock = threading.Lock()
        self._adding: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # one file of an upload at a time

    def begin(self) -> str:
        """Return the token of a new upload, and delete the oldest ones if there are too many."""
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / token).mkdir(mode=0o700)
            oldest_first = sorted(self._folder.iterdir(), key=lambda folder: folder.stat().st_mtime)
            for folder in oldest_first[: -self._kept]:
                shutil.rmtree(folder, ignore_errors=True)
        return token

    async def add(self, token: str, index: int, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a file of an upload.

        Args:
            token: of the upload.
            index: of the file; a file with the same index is replaced.
            name: of the file; only its suffix is used.
            chunks: its bytes.

        Raises:
            UserError: the upload does not exist, or has too many files or bytes.
        """
        folder = self._existing(token)
        if not 0 <= index < MAX_FILES:
            raise UserError(f"upload: it has more than {MAX_FILES} files; send one NIfTI file or one DICOM series")
        file = folder / f"{index:05d}{_suffix(name)}"
        async with self._adding.setdefault(token, asyncio.Lock()):  # so that files sent at once share the limit
            await self._write(file, chunks)

    async def _write(self, file: Path, chunks: AsyncIterator[bytes]) -> None:
        left = self._most_bytes - sum(other.stat().st_size for other in file.parent.iterdir() if other != file)
        try:
            with open(file, "wb") as target:
                async for chunk in chunks:
                    left -= len(chunk)
                    if left < 0:
                        raise UserError(
                            f"upload: it is larger than {self._most_bytes >> 20} MiB; start the server with the image, "
                            "or with --root"
                        )
                    target.write(chunk)
        except BaseException:
            file.unlink(missing_ok=True)
            raise

    def path_of(self, token: str) -> Path:
        """Return the image of an upload: its only file, or its folder of DICOM files.

        Raises:
            UserError: the upload does not exist or has no files.
        """
        folder = self._existing(token)
        files = sorted(folder.iterdir())
        if not files:
            raise UserError("upload: it has no files; send a NIfTI file or a DICOM series")
        return files[0] if len(files) == 1 else folder

    def _existing(self, token: str) -> Path:
        folder = self._folder / token
        if not _TOKEN.fullmatch(token) or not folder.is_dir():
            raise UserError("upload: it does not exist any more; send the image again")
        return folder


def _suffix(name: str) -> str:
    """Return the suffix of a file name in lower case, such as .nii.gz; "" for none, and for the end of a DICOM UID."""
    found = _SUFFIX.search(name.lower())
    return found[0] if found else ""
