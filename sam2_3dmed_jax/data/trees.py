"""Where the files of a dataset lie: in a folder, or in a tar that is not unpacked. Names in it are relative, with `/`.

Links on disk are followed, as people link their data; in an archive there are none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from etils import epath

from sam2_3dmed_jax.data.tar_members import Member, read_members
from sam2_3dmed_jax.errors import UserError

DESCRIPTION = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"


class Tree(Protocol):
    """A dataset's files."""

    @property
    def name(self) -> str:
        """Of the dataset's folder."""

    def path(self, name: str) -> str:
        """Of a file: on disk, or the member's name."""

    def shown(self, name: str) -> str:
        """A file as a message names it; "" stands for the dataset."""

    def has(self, name: str) -> bool:
        """Whether a file is there."""

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted, without hidden ones; none if there is no such folder."""

    def read(self, name: str, most: int) -> bytes:
        """A small file. UserError: it is larger than `most` bytes or cannot be read."""


class FolderTree:
    """A dataset in a folder, which `epath` may find in a bucket too."""

    def __init__(self, path: str | os.PathLike[str]):
        self._root = epath.Path(path)

    @property
    def name(self) -> str:
        """Of the folder."""
        return printable(self._root.name or self._root.resolve().name or "dataset")

    def path(self, name: str) -> str:
        """On disk."""
        return str(self._root / name)

    def shown(self, name: str) -> str:
        """The path."""
        return printable(self.path(name))

    def has(self, name: str) -> bool:
        """Whether a file, or a link to one, is there."""
        file = self._root / name
        return file.exists() and not file.is_dir()

    def names(self, folder: str) -> list[str]:
        """What the folder lists, hidden files left out."""
        place = self._root / folder
        try:
            return sorted(file.name for file in place.iterdir() if file.name[0] != ".") if place.is_dir() else []
        except OSError as error:
            raise UserError(_unreadable(self.shown(folder), error)) from error

    def read(self, name: str, most: int) -> bytes:
        """The file's bytes."""
        try:
            with (self._root / name).open("rb") as stream:
                return _at_most(stream.read(most + 1), most, self.shown(name))
        except OSError as error:
            raise UserError(_unreadable(self.shown(name), error)) from error


class TarTree:
    """A dataset in a tar; its folder is the one with `dataset.json`, or else with `imagesTr`.

    Raises:
        UserError: as `read_members`; or the archive holds no dataset, or several.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._archive, self._members = os.fspath(path), read_members(path)
        self._root = _root(self._archive, self._members)

    @property
    def name(self) -> str:
        """Of the folder inside the archive, or else of the archive."""
        return printable(self._root.rstrip("/").rpartition("/")[2]) or Path(self._archive).name.removesuffix(".tar")

    def path(self, name: str) -> str:
        """The member's name."""
        return self._root + name

    def shown(self, name: str) -> str:
        """The archive and the member."""
        return printable(f"{self._archive}:{self.path(name)}" if name else self._archive)

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return self.path(name) in self._members

    def names(self, folder: str) -> list[str]:
        """Members right below the folder, hidden ones left out."""
        parent = f"{self.path(folder)}/"
        below = (name.removeprefix(parent) for name in self._members if name.startswith(parent))
        return sorted(name for name in below if "/" not in name and name[0] != ".")

    def read(self, name: str, most: int) -> bytes:
        """The member's bytes."""
        member = self.member(self.path(name))
        try:
            with epath.Path(self._archive).open("rb") as stream:
                stream.seek(member.offset)
                return _at_most(stream.read(min(member.size, most + 1)), most, self.shown(name))
        except OSError as error:
            raise UserError(_unreadable(self.shown(name), error)) from error

    def member(self, path: str) -> Member:
        """Where a file lies in the archive, by its path."""
        return self._members[path]


def printable(text: str) -> str:
    """The text, with control characters and undecodable bytes escaped: a stranger's names end up on a terminal."""
    return text if text.isprintable() else ascii(text)


def _root(archive: str, members: dict[str, Member]) -> str:
    """The folder of the dataset inside an archive: "" or with a slash at its end."""
    visible = [name.split("/") for name in members if not any(part[0] == "." for part in name.split("/"))]
    roots = {tuple(parts[:-1]) for parts in visible if parts[-1] == DESCRIPTION}
    roots = roots or {tuple(parts[:-2]) for parts in visible if parts[-2:-1] == [IMAGES]}
    if not roots:
        raise UserError(
            f"{archive} holds neither {DESCRIPTION} nor {IMAGES}; give the archive of a dataset in MSD layout"
        )
    depth = min(map(len, roots))
    highest = sorted("/".join(root) for root in roots if len(root) == depth)
    if len(highest) > 1:
        raise UserError(
            f"{archive} holds {len(highest)} datasets ({highest[0]!r}, {highest[1]!r}), expected one; unpack it and "
            "give the folder of one"
        )
    return f"{highest[0]}/" if highest[0] else ""


def _at_most(data: bytes, most: int, shown: str) -> bytes:
    if len(data) > most:
        raise UserError(f"{shown} is larger than {most} bytes, expected the description of a dataset; check the file")
    return data


def _unreadable(shown: str, error: OSError) -> str:
    return f"{shown} cannot be read ({error.strerror or error}); check the file and its rights"
