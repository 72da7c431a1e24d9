"""Access to the files of a dataset in a folder or in a tar archive, by relative names with `/`.

Symbolic links on disk are followed; archives with links are refused (`tar_members`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

from sam2_3dmed_jax.data.tar_members import TarMember, read_members
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.user_files import read_bytes
from sam2_3dmed_jax.volume.case_files import list_names

DATASET_JSON = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"


class DatasetFiles(Protocol):
    """The files of a dataset."""

    @property
    def name(self) -> str:
        """Return the name of the dataset's folder."""

    def path(self, name: str) -> str:
        """Return the path of a file on disk, or the name of the archive's member."""

    def display_path(self, name: str) -> str:
        """Return the path of a file for messages; the name "" gives the dataset."""

    def contains(self, name: str) -> bool:
        """Return whether a file exists."""

    def list_files(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, subfolders with a slash at the end; [] if it does not exist."""

    def read_bytes(self, name: str, limit: int) -> bytes:
        """Read a small file.

        Raises:
            UserError: the file is larger than `limit` bytes or cannot be read.
        """


class FolderFiles:
    """A dataset in a folder."""

    def __init__(self, path: str | os.PathLike[str]):
        self._root = Path(path)
        self._names: dict[str, list[str]] = {}  # by folder

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return printable(self._root.name or self._root.resolve().name or "dataset")

    def path(self, name: str) -> str:
        """Return the path on disk."""
        return str(self._root / name)

    def display_path(self, name: str) -> str:
        """Return the path."""
        return printable(self.path(name))

    def contains(self, name: str) -> bool:
        """Return whether a file, or a link to a file, exists; no name is too long for the question."""
        path = self.path(name)
        return os.path.exists(path) and not os.path.isdir(path)

    def list_files(self, folder: str) -> list[str]:
        """Return the sorted names in a folder."""
        path = self._root / folder
        if folder not in self._names:
            self._names[folder] = list_names(path) if path.is_dir() else []
        return self._names[folder]

    def read_bytes(self, name: str, limit: int) -> bytes:
        """Read a small file."""
        return read_bytes(self._root / name, "check the file and its permissions", limit)


class ArchiveFiles:
    """A dataset in a tar archive. Its folder is the one with `dataset.json`, otherwise the one with `imagesTr`.

    Raises:
        UserError: as `read_members`; or the archive does not contain exactly one dataset.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._archive, self._members = os.fspath(path), read_members(path)
        self._root = _root(self._archive, self._members)

    @property
    def name(self) -> str:
        """Return the name of the folder in the archive, or the name of the archive if files are at its top."""
        return printable(self._root.rstrip("/").rpartition("/")[2]) or re.sub(
            r"\.tar$", "", Path(self._archive).name, flags=re.IGNORECASE
        )

    def path(self, name: str) -> str:
        """Return the name of the member."""
        return self._root + name

    def display_path(self, name: str) -> str:
        """Return archive and member."""
        return printable(f"{self._archive}:{self.path(name)}" if name else self._archive)

    def contains(self, name: str) -> bool:
        """Return whether the member exists."""
        return self.path(name) in self._members

    def list_files(self, folder: str) -> list[str]:
        """Return the sorted names in a folder."""
        parent = f"{self.path(folder)}/"
        below = (name.removeprefix(parent).partition("/") for name in self._members if name.startswith(parent))
        return sorted({name + slash for name, slash, _ in below})

    def read_bytes(self, name: str, limit: int) -> bytes:
        """Read a small member."""
        member = self.member(self.path(name))
        try:
            with Path(self._archive).open("rb") as stream:
                stream.seek(member.offset)
                return _limited(stream.read(min(member.size, limit + 1)), limit, self.display_path(name))
        except OSError as error:
            raise UserError(_unreadable(self.display_path(name), error)) from error

    def member(self, path: str) -> TarMember:
        """Return offset and size of a file, by its path in the archive."""
        return self._members[path]


def printable(text: str) -> str:
    """Escape control characters and undecodable bytes, because names from untrusted archives are printed."""
    return text if text.isprintable() else ascii(text)


def _root(archive: str, members: dict[str, TarMember]) -> str:
    """Return the folder of the dataset in an archive: "", or a path that ends with a slash."""
    visible = [name.split("/") for name in members if not any(part[0] == "." for part in name.split("/"))]
    roots = {tuple(parts[:-1]) for parts in visible if parts[-1] == DATASET_JSON}
    roots = roots or {tuple(parts[:-2]) for parts in visible if parts[-2:-1] == [IMAGES]}
    if not roots:
        raise UserError(
            f"{archive} contains neither {DATASET_JSON} nor {IMAGES}; give the archive of a dataset in MSD layout"
        )
    depth = min(map(len, roots))
    highest = sorted("/".join(root) for root in roots if len(root) == depth)
    if len(highest) > 1:
        raise UserError(
            f"{archive} contains {len(highest)} datasets ({highest[0]!r}, {highest[1]!r}), expected one; unpack it and "
            "give the folder of one of them"
        )
    return f"{highest[0]}/" if highest[0] else ""


def _limited(data: bytes, limit: int, path: str) -> bytes:
    if len(data) > limit:
        raise UserError(f"{path} is larger than {limit} bytes, expected the description of a dataset; check the file")
    return data


def _unreadable(path: str, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror or error}); check the file and its permissions"
