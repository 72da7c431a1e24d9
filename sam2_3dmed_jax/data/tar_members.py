"""Checked list of the members of an untrusted, uncompressed tar archive.

Members that leave the folder, links, devices, overlapping members and truncated archives are refused. Nothing is
unpacked under the name of a member. Members do not overlap, so their total size is at most the size of the archive.
"""

from __future__ import annotations

import os
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.user_files import check_regular
from sam2_3dmed_jax.volume.formats import compressed_suffixes, suffix_of

MEMBER_LIMIT = 8 * 2**30  # maximum bytes of a member; the largest volume of MSD is below 1 GiB
COUNT_LIMIT = 100_000  # maximum number of members
_HEADER_LIMIT = 2**16  # maximum bytes of the headers of a member, with long names and extended attributes
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_UNSUPPORTED_TYPES = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


@dataclass(frozen=True)
class TarMember:
    """Position of a file in its archive."""

    offset: int  # bytes
    size: int  # bytes


def read_members(path: str | os.PathLike[str]) -> dict[str, TarMember]:
    """Return the files of a tar by name (without `./`), with hidden files and without folders.

    Raises:
        UserError: the file is not an uncompressed tar, is truncated or damaged, or has a member that is not a plain
            file or folder, leaves the folder it is unpacked in, occurs twice or is too large.
    """
    file = Path(path)
    try:
        check_regular(path, "give a dataset's folder or its .tar")
        length = file.stat().st_size
        with file.open("rb") as stream:
            _refuse_compressed(path, stream.read(8))
            stream.seek(0)
            members, end = _scan(path, stream, length)
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise UserError(_truncated(path, "its closing block of zeros is missing"))
    except tarfile.ReadError as error:
        raise UserError(_truncated(path, str(error))) from error
    except (tarfile.TarError, ArithmeticError, LookupError, ValueError) as error:
        raise UserError(f"{path} is damaged (a header cannot be read: {error}); download it again") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    return members


def normalized(name: str) -> str:
    """Return a name without `./` and without doubled or trailing slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def leaves_folder(name: str) -> bool:
    """Return whether a path is absolute or contains `..`."""
    return name.startswith("/") or ".." in name.split("/")


def _scan(path: str | os.PathLike[str], stream: BinaryIO, length: int) -> tuple[dict[str, TarMember], int]:
    """Return the members, and the offset at which the last member ends."""
    headers: Any = _Headers(stream, path)
    try:
        tar = tarfile.TarFile(fileobj=headers, mode="r")
    except tarfile.ReadError as error:
        raise UserError(f"{path} is not a tar archive ({error}); give a dataset's folder or its .tar") from error
    members: dict[str, TarMember] = {}
    end = count = 0
    while (info := tar.next()) is not None:
        headers.next_member()
        count += 1
        if info.size < 0 or info.offset < end:
            raise UserError(f"{path} is damaged (member {info.name!r} overlaps another one); download it again")
        _check(path, info)
        if count > COUNT_LIMIT:
            raise UserError(f"{path} has more than {COUNT_LIMIT} members; unpack it and give the dataset's folder")
        size = info.size if info.isreg() else 0
        end = info.offset_data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if info.offset_data + size > length:
            raise UserError(
                _truncated(path, f"member {info.name!r} ends at byte {info.offset_data + size} of {length}")
            )
        if info.isreg():
            name = normalized(info.name)
            if name in members:
                raise UserError(f"{path} contains {name!r} twice, expected once; re-pack the dataset with `tar -cf`")
            members[name] = TarMember(info.offset_data, size)
    return members, end


def _check(path: str | os.PathLike[str], info: tarfile.TarInfo) -> None:
    if not normalized(info.name) and not info.isdir():
        raise UserError(f"{path} is damaged (the name of a member is empty); re-pack the dataset with `tar -cf`")
    if leaves_folder(info.name):
        raise UserError(
            f"{path}: member {info.name!r} leaves the folder it is unpacked in, expected names such as "
            "Task09_Spleen/imagesTr/x.nii.gz; re-pack it from inside the folder, if you trust its source"
        )
    if info.issparse() or not (info.isreg() or info.isdir()):
        kind = (
            "a sparse file"
            if info.issparse()
            else _UNSUPPORTED_TYPES.get(info.type, f"of the unknown type {info.type!r}")
        )
        raise UserError(
            f"{path}: member {info.name!r} is {kind}, expected files and folders; re-pack the dataset with "
            "`tar --dereference --hard-dereference -cf`, if you trust its source"
        )
    if info.size > MEMBER_LIMIT:
        raise UserError(
            f"{path}: member {info.name!r} declares {info.size} bytes, expected at most {MEMBER_LIMIT}; "
            "remove it from the archive, or crop the volume"
        )


def _refuse_compressed(path: str | os.PathLike[str], start: bytes) -> None:
    name = os.fspath(path)
    if start.startswith(b"PK"):
        raise UserError(
            f"{path} is a zip file, expected a folder or an uncompressed .tar; run `unzip {shlex.quote(name)}` and "
            "give the dataset's folder"
        )
    for magic, (kind, command) in _COMPRESSED.items():
        if start.startswith(magic):
            if suffix_of(name, compressed_suffixes()):
                raise UserError(f"{path} is one image, expected a dataset; give a dataset's folder or its .tar")
            raise UserError(
                f"{path} is compressed with {kind}, expected an uncompressed .tar, from which single cases can be "
                f"read; run `{command} {shlex.quote(name)}` and give the .tar"
            )


def _truncated(path: str | os.PathLike[str], reason: str) -> str:
    return f"{path} is truncated or damaged ({reason}); download it again"


class _Headers:
    """The archive as a stream for `tarfile`, which limits the memory for the headers of a member to `_HEADER_LIMIT`."""

    def __init__(self, stream: BinaryIO, path: str | os.PathLike[str]):
        self._stream, self._path = stream, path
        self.seek, self.tell = stream.seek, stream.tell
        self.next_member()

    def next_member(self) -> None:
        self._left = _HEADER_LIMIT

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise UserError(
                f"{self._path} is damaged (the headers of a member have more than {_HEADER_LIMIT} bytes); "
                "download it again, or re-pack the dataset with `tar -cf`"
            )
        self._left -= size
        return self._stream.read(size)
